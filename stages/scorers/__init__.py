"""Scorers of captions. They know nothing of this project: text in, numbers out; numpy alone, and Java for METEOR.

from stages.scorers.score import score

scores = score({42: "a dog runs on grass"}, {42: ["A dog is running .", "The dog runs across a lawn ."]})
scores.metrics()             # {"bleu_1": ..., ..., "cider": ..., "meteor": ... or None}
scores.intervals(1000, seed=0)
"""
