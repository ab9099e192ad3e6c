"""Which language a text is in: a guess by its first thousand characters, the surer the longer they are."""

from collections.abc import Collection

ENOUGH = 1000  # characters


def language(text: str) -> str:
    """ISO 639-1 code, where there is one, of the likeliest language; zxx for what is none, such as a formula.

    Lui and Baldwin, langid.py: an off-the-shelf language identification tool, 2012 (py3langid).
    """
    import py3langid  # three seconds for its model: only who asks pays

    return py3langid.classify(text[:ENOUGH])[0]


def is_in(text: str, languages: Collection[str]) -> bool:
    """Whether a text is in one of the languages, or in none: a formula is no reason to leave a text out."""
    return not any(map(str.isalpha, text[:ENOUGH])) or language(text) in {*languages, "zxx"}
