"""What a run measures: first in journals in its folder, then in MLflow.

run       opening and closing a run, and its tracker
delivery  from the journals to MLflow, in order and once
journal   lines of JSON
machine   CPU, memory and GPU load
pictures  the first batch
"""
