"""When two answers are the same."""


def same_answer(answer: str, reference: str) -> bool:
    """Exact match, white space around both aside: for filters as for scores."""
    return answer.strip() == reference.strip()
