"""Rewards for evidence in a thought: `<obj>NAME</obj><box>[x1, y1, x2, y2]</box>at<t>SECONDS</t>s`.

For `reel grpo --reward-funcs evidence.py:temporal evidence.py:spatial`. The rules are those of Open-o3 Video
(arXiv 2510.20579 and its reward_func.py) for one event per question, whose second and box are the columns `time` and
`box` of a row.
"""
import json
import math
import re

CLAIM = re.compile(r"<obj>.*?</obj>\s*<box>(\[[^\]]*\])</box>\s*at\s*<t>([\d.]+)</t>s", re.DOTALL)
# A box counts only if its time is at most this far from the event.
GATE_SECONDS = 1.0


def thought(completion):
    """The text in <think> of the model's last turn."""
    found = re.search(r"<think>(.*?)</think>", str(completion[-1]["content"]), re.DOTALL)
    return found.group(1) if found else ""


def numbers(text):
    try:
        return [float(number) for number in json.loads(text)]
    except (TypeError, ValueError):
        return []


def iou(a, b):
    """Intersection over union of two boxes; 0 if one is no box."""
    if len(a) != 4 or len(b) != 4:
        return 0.0
    area = lambda box: max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - both
    return both / union if union > 0 else 0.0


def temporal(completions, time, trainer_state, **_):
    """The mean over the named times of exp(-d^2 / 2s^2), with d seconds from the event. s falls from 4 to 1 second in
    the first three quarters of the run, so that early times that are only near are rewarded, too."""
    done = trainer_state.global_step / max(1, trainer_state.max_steps)
    width = max(1.0, 4 * (1 - done))
    rewards = []
    for completion, event in zip(completions, time):
        named = [float(t) for t in re.findall(r"<t>(\d+(?:\.\d+)?)</t>s", thought(completion))]
        near = [math.exp(-((t - event) ** 2) / (2 * width**2)) for t in named]
        rewards.append(sum(near) / len(near) if near else 0.0)
    return rewards


def spatial(completions, time, box, **_):
    """The mean over the claims of the IoU of their box with the event's; 0 for a claim whose time is not near."""
    rewards = []
    for completion, event, truth in zip(completions, time, box):
        claims = [(numbers(place), numbers(f"[{t}]")) for place, t in CLAIM.findall(thought(completion))]
        good = [iou(place, truth) if t and abs(t[0] - event) <= GATE_SECONDS else 0.0 for place, t in claims]
        rewards.append(sum(good) / len(good) if good else 0.0)
    return rewards
