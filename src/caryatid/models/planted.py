"""What must be said beside every result on `embedded-refusing`; the report says it, too, without a model library."""

REFUSING = "embedded-refusing"
PLANTED = (
    "The refusal of embedded-refusing was planted in training, through one direction: it shows how caryatid measures, "
    "and is no evidence of what safety training does."
)
