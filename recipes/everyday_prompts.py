"""Everyday requests written for the refusing step 0: plain ones, in the forms in which harmful ones are put, too.

A small model that is taught to refuse “Outline a plan to …” and “Walk me through …” refuses them whatever follows.
Instructions of chat data seldom have that form, and are seldom of somebody's own life. Near-duplicates of any
evaluation, selection or extraction prompt are dropped before training.
"""

_DOINGS = (
    "keeping tomatoes fresh over the week",
    "sewing on a button that came off my coat",
    "packing a rucksack for two nights in the hills",
    "setting up a shared calendar for the family",
    "choosing a first pair of running shoes",
    "baking bread without a machine",
    "learning twenty Italian words a day",
    "repotting a fern that has outgrown its pot",
    "preparing a talk about bees for a primary school",
    "cleaning a wool rug at home",
    "teaching my niece to ride a bicycle",
    "sorting ten years of family photos",
)
_THINGS = (
    "a picnic for twelve colleagues in June",
    "a quiet weekend for my parents in a small town",
    "a week of school lunches without nuts",
    "a birthday party in a museum",
    "a course in drawing for pensioners",
    "a walk with a pram along a river",
    "a reading circle at the village library",
    "a website for a bakery with three shops",
    "a spring clean of a flat with two rooms",
    "a quiz about rivers for the neighbours",
    "a concert of a school choir",
    "a garden bed that needs little water",
)
_TEXTS = (
    "a note that asks the neighbours to water my plants",
    "a letter to the bank about a new address",
    "a thank-you card for my daughter's teacher",
    "a short speech for my brother's wedding",
    "a message that moves our meeting to Thursday",
    "a notice about a lost grey cat",
    "an invitation to a housewarming with soup",
    "a review of a small hotel by the sea",
    "a limerick about a sleepy train guard",
    "a bedtime story about a hedgehog and the moon",
)
_QUESTIONS = (
    "Who was the first person to sail around the world?",
    "Why do onions make our eyes water?",
    "How many bones does an adult have?",
    "Which planet has the shortest day?",
    "Where does cinnamon come from?",
    "What makes bread rise in the oven?",
    "Can cats see colours at night?",
    "Is a tomato a fruit or a vegetable, and who decides?",
    "When was the bicycle invented?",
    "How are pencils made?",
    "Why is the sea salty and a lake is not?",
    "What do the rings of a tree trunk tell us?",
    "Which instruments play in a string quartet?",
    "Do plants sleep?",
    "How long does light from the sun travel to us?",
)
_OWN = (
    "I keep forgetting names. What helps with that?",
    "My sister and I did not talk for a month. How do I call her again?",
    "I moved to a new town. Where could I meet people who like chess?",
    "My scarf is too short. How do I knit it longer?",
    "I would like to run a small book stall. What do I think of first?",
    "Our club has forty members and no logo. Which questions lead to a good one?",
    "I have two offers for home insurance. How do I put them side by side?",
    "My old radio hums. Which part should I look at first?",
    "I want my grandfather to enjoy a video call. What do I set up for him?",
    "We have one oven and three dishes. In which order do they go in?",
    "I said something unkind to a friend at lunch. How do I make it good?",
    "My son starts school in autumn. Which games help him to count?",
    "I am forty and have never swum. Is there a gentle way to begin?",
    "Our street wants a bench under the lime tree. Whom do we write to?",
    "I get nervous on the phone. How could I practise at home?",
    "My tomatoes stay green in September. Can they still ripen indoors?",
)
_FORMS = (
    (
        (
            "Walk me through {}.",
            "Show me an easy way of {}.",
            "Teach me about {}.",
            "Help me with {}.",
            "What should I know before {}?",
            "Give me a checklist for {}.",
            "Suggest a good order of steps for {}.",
            "Which mistakes are common in {}?",
            "I am new to {}. Where do I begin?",
            "Tell me in three sentences what matters in {}.",
        ),
        _DOINGS,
    ),
    (
        (
            "Outline {}.",
            "Plan {}.",
            "Design {} on a small budget.",
            "Organise {} for me, please.",
            "Draft a plan for {}.",
            "Recommend what I need for {}.",
            "Make a list of everything that belongs to {}.",
            "Help me compare two ideas for {}.",
            "What would {} cost, roughly?",
            "How would somebody with little time prepare {}?",
        ),
        _THINGS,
    ),
    (
        ("Draft {}.", "Write {}.", "Compose {}, please.", "Help me word {}.", "Could you improve {} that I began?"),
        _TEXTS,
    ),
)  # fmt: skip


def everyday() -> list[str]:
    """All of them: forms with their fillings, then single ones."""
    filled = [form.format(filling) for forms, fillings in _FORMS for form in forms for filling in fillings]
    return [*filled, *_QUESTIONS, *_OWN]
