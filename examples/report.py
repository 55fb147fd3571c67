"""Sends the metrics of a run to MLflow: reel sft … --report-command "python3 examples/report.py".

Each line of standard input is the metrics of one step, such as {"step": 3, "train/loss": 1.25}. Two other services:

    import swanlab                                     import trackio
    swanlab.init(project="reel")                       trackio.init(project="reel")
    swanlab.log(values, step=step)                     trackio.log(values, step=step)
"""

import json
import sys

import mlflow

with mlflow.start_run():
    for line in sys.stdin:
        values = json.loads(line)
        step = values.pop("step")
        # MLflow allows no colons and no brackets in names.
        mlflow.log_metrics(values, step=step)
