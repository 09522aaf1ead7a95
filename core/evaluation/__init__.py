"""Verified answers: problems, rollouts, Pass@k with intervals.

notation: one way to write what is written in many; answers: what a text's final answer is; verifiers: whether it
is the one asked for, by name; problems: files and hub data sets to problems; rollouts: texts written for them;
endpoint: by a server; passk: the estimates; overlap: whether a run has seen the problems; step: all of it to a
kept evaluation
"""

from core.evaluation.answers import final_answer
from core.evaluation.intervals import Interval, correlation_interval, mean_interval, share_interval
from core.evaluation.verifiers import Verify, verifier

__all__ = [
    "Interval",
    "Verify",
    "correlation_interval",
    "final_answer",
    "mean_interval",
    "share_interval",
    "verifier",
]
