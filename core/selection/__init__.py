"""Selections: from scores, a rule and constraints to an ordered set of examples.

pool: the value types; rules: each rule as an order; farthest, kernels: farthest points; quotas, screening:
constraints; choose: all of it to a Selection; measures: what a selection means
"""

FORMATS = ("trl", "messages", "alpaca", "sharegpt", "axolotl", "rows", "parquet")
TUNINGS = ("full", "lora")
VECTORS_VERSION = 1
"""How texts become vectors; those of another version are made again."""
SCREENING_VERSION = 2
"""What counts as a duplicate or an overlap; results of another version are looked for again."""
