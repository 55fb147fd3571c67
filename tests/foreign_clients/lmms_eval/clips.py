"""The functions of the task in reel_clips.yaml."""


def videos(row):
    """The paths of the videos of a row."""
    return [row["video"]]


def question(row):
    """The text of the prompt."""
    return row["question"]
