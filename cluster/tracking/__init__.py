"""What a run measures: journals beside it first, then MLflow.

run       opening and closing a run, and its tracker
delivery  from the journals to MLflow, in order and once
journal   lines of JSON
machine   CPU, memory and GPU load
pictures  the first batch
"""
