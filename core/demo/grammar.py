"""The words and sentence patterns that `world` draws from."""

NAMES = (
    "Ada", "Ben", "Cleo", "Dina", "Emil", "Fara", "Gus", "Hana", "Ivan", "Jun", "Kofi", "Lena", "Mia",
    "Noor", "Omar", "Pia", "Quinn", "Rosa", "Sami", "Tara", "Uma", "Vera", "Wim", "Yara", "Zoe", "Leo",
)  # fmt: skip
THINGS = (
    "apples", "shells", "stamps", "coins", "books", "cards", "marbles", "stones", "pencils", "tickets",
    "cookies", "flowers", "beads", "buttons", "lemons", "plums", "candles", "bottles", "stickers", "photos",
    "maps", "nuts", "eggs", "keys",
)  # fmt: skip
PLACES = (
    "market", "school", "library", "park", "kitchen", "garden", "beach", "station", "museum", "farm",
    "shop", "harbor",
)  # fmt: skip
DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
MOODS = (
    "quiet", "busy", "cold", "sunny", "crowded", "empty",
)  # fmt: skip
SINGULAR = {
    "yards": "yard", "feet": "foot", "inches": "inch", "weeks": "week", "days": "day", "hours": "hour",
    "minutes": "minute", "gallons": "gallon", "quarts": "quart", "pints": "pint", "cups": "cup",
    "pounds": "pound", "ounces": "ounce",
}  # fmt: skip
UNITS = (
    ("yards", "feet", 3), ("feet", "inches", 12), ("weeks", "days", 7), ("days", "hours", 24),
    ("hours", "minutes", 60), ("gallons", "quarts", 4), ("quarts", "pints", 2), ("pints", "cups", 2),
    ("pounds", "ounces", 16),
)  # fmt: skip
STUFFS = (
    (("yards", "feet", "inches"), ("rope", "ribbon", "wire", "cloth")),
    (("weeks", "days", "hours", "minutes"), ("music", "video", "training")),
    (("gallons", "quarts", "pints", "cups"), ("milk", "juice", "water", "paint")),
    (("pounds", "ounces"), ("flour", "sugar", "rice", "salt")),
)
PARTS = (
    (2, "one half"), (3, "one third"), (4, "one quarter"), (5, "one fifth"), (10, "one tenth"),
    (2, "50 percent"), (4, "25 percent"), (5, "20 percent"), (10, "10 percent"),
)  # fmt: skip

OPENINGS = (
    "{n} has {v} {t}.",
    "{n} keeps {v} {t} at the {p}.",
    "On {d} {n} brings {v} {t} to the {p}.",
    "At the {p} {n} gets {v} {t}.",
)
SCENES = ("It is {d} and the {p} is {mood}.", "The {p} is {mood} on {d}.", "{m} meets {n} at the {p}.")
LINKS = ("Then ", "Later ", "After that ", "The next day ", "In the evening ", "On {d} ", "")
QUESTIONS = (
    "How many {t} does {n} have in the end?",
    "How many {t} does {n} have now?",
    "Find the number of {t} that {n} has.",
)
CLAUSES = {
    "addition": (
        "{n} finds {b} more {t}", "{n} gets {b} {t} from {m}", "{m} brings {n} {b} more {t}",
        "{n} buys {b} {t} at the {p}",
    ),
    "subtraction": (
        "{n} gives {b} {t} to {m}", "{n} loses {b} {t}", "{n} sells {b} {t} at the {p}",
        "{m} takes {b} {t} from {n}",
    ),
    "multiplication": (
        "{n} makes the amount {b} times as large", "{n} trades each of the {t} for {b} new ones",
        "{m} helps {n} to get {b} times as many {t}",
    ),
    "division": (
        "{n} shares the {t} equally among {b} friends and keeps one share",
        "{n} splits the {t} into {b} equal piles and keeps one pile",
        "{n} keeps only one of every {b} {t}",
    ),
    "fraction": (
        "{n} gives {part} of the {t} to {m}", "{n} loses {part} of the {t}",
        "{n} sells {part} of the {t} at the {p}",
    ),
    "conversion": ("{n} counts the {stuff} in {unit}", "{n} measures the {stuff} in {unit}"),
}  # fmt: skip
COMPARISONS = {
    "+": ("{m} has {b} more {t} than {n}", "{n} has {b} fewer {t} than {m}"),
    "-": ("{m} has {b} fewer {t} than {n}", "{n} has {b} more {t} than {m}"),
    "*": ("{m} has {b} times as many {t} as {n}",),
}
VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide", "%": "take a part away"}
WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
ACTS = {
    "+": "we add {b} to {a}", "-": "we subtract {b} from {a}", "*": "we multiply {a} by {b}",
    "/": "we divide {a} by {b}", "%": "we take one in {b} away from {a}",
}  # fmt: skip
BRIEF = (
    "Because {reason}, {act}, and {calculation}.",
    "We know that {reason}. So {act}: {calculation}.",
    "Next {act}, because {reason}. We get that {calculation}.",
)
DETAILED = (
    "We have {a} {before} here. Because {reason}, {act}. We get that {calculation}. This makes {r} {after}.",
    "We are told that {reason}. Before this there are {a} {before}. So {act}: {calculation}. {n} has {r}.",
    "There are {a} {before} so far. We know that {reason}. Next {act}, and {calculation}. Now there are {r}.",
)
LETTERS = "pqrstu"
