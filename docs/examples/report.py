"""Sends the metrics of a run to MLflow: reel sft … --report-command "python3 docs/examples/report.py".

Each line of standard input is the metrics of one step, such as {"step": 3, "train/loss": 1.25}. Two other services:

    import swanlab                                     import trackio
    swanlab.init(project="reel")                       trackio.init(project="reel")
    swanlab.log(values, step=step)                     trackio.log(values, step=step)
"""

import json
import re
import sys

import mlflow


def allowed(name):
    """MLflow allows letters, digits and "_-./ " in the name of a metric, and 250 characters."""
    return re.sub(r"[^\w\-./ ]", "_", name)[:250]


with mlflow.start_run():
    for line in sys.stdin:
        values = json.loads(line)
        step = values.pop("step")
        # A value that is no number, such as NaN, is null.
        mlflow.log_metrics({allowed(name): value for name, value in values.items() if value is not None}, step=step)
