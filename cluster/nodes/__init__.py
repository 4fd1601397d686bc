"""The cluster that Ray gives: started or joined, what it has, what is waited for there, and what it says.

start        starts Ray, or joins a cluster
local        Ray that other machines cannot reach
resources    devices and places: where everything runs
autoscaling  what the cluster may grow to
waiting      waiting for its resources, with words
versions     whether a node has the driver's libraries
errors       what Ray says of workers that died
"""
