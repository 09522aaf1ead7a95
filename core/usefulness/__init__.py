"""Which directions help the model: utility, proxies, their controls, and the recommendation that rests on them."""

PROXIES = ("utility", "first-order", "steering", "sft")
PROXY_KINDS = PROXIES[1:]
SIGNIFICANCE = 0.05
