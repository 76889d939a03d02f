"""Why a verdict is undetermined, in words for a reader who has not read the protocol."""

import re
from collections.abc import Mapping

NO_CARRIER: Mapping[str, str] = {
    "no refusal": "the model hardly refuses",
    "undiscriminating refusal": "the model refuses harmless requests, too",
    "gap too small": "the model hardly tells harmful requests from harmless ones",
    "no admissible carrier": "no direction removes and causes refusal without other damage",
}
# A sentence of a verdict's reasons, and what it means; `{0}` and `{1}` are its groups, start and end the two steps.
PLAIN: Mapping[str, str] = {
    r"The first anchor has no carrier: (.+)\.": "at step {start} {0}",
    r"The second anchor has no carrier: (.+)\.": "at step {end} {0}",
    r"Nothing is known of control: .+": "no refusal of step {end} was asked again without a direction",
    r"The second anchor's own carrier removes ([\d.]+) of its refusals, .+": "the best direction of step {end} removes "
    "too few of its refusals to be what carries them",
    r"The second anchor's own carrier removes \S+ \[.+": "the best direction of step {end} removes hardly more of its "
    "refusals than random ones",
    r"Contradictory: .+": "step {start}'s direction lost its hold, and yet neither place nor direction changed",
    r"Depends on the profile: (.+) with the one used, (.+) with (.+)\.": "it depends on which directions are admitted "
    "({0}, or {1} by the rules “{2}”)",
    r"Missing: neither a move nor .+": "whether its place changed is not sure enough",
    r"Missing: the bounds of D\(.+\) lie .+": "whether step {start}'s direction still controls it is not sure enough",
    r"Missing: the corrected angle's interval contains (\S+)\.": "the angle cannot be told from {0}, from which on it "
    "counts as a turn",
    r"Missing: the lower bound of D\(.+\) .+": "whether step {start}'s direction still does what step {end}'s "
    "does is not sure enough",
}


def in_plain_words(reason: str, start: int, end: int) -> str:
    """A sentence of a verdict's reasons as part of a sentence; empty for what is measured, and no obstacle.

    Args:
        start, end: steps of the verdict's two anchors.
    """
    for pattern, words in PLAIN.items():
        if found := re.fullmatch(pattern, reason):
            return words.format(*(NO_CARRIER.get(one, one) for one in found.groups()), start=start, end=end)
    return ""
