"""What is cut from a model's reply, and what must stay: replies as models write them, and properties of the rule."""

import random

import pytest

from cai.preamble import strip_preamble

R = "I won't help with that, but I can explain how locks work."
"""A reply in the tables below."""

CUT = [
    # announcements
    (f"Here is the rewritten response:\n\n{R}", R, "Here is the rewritten response:"),
    (f"Sure, here is the rewritten response:\n\n{R}", R, "Sure, here is the rewritten response:"),
    (f"Sure! Here's the revised reply:\n{R}", R, "Sure! Here's the revised reply:"),
    (f"Sure thing! Here’s a revised response: {R}", R, "Sure thing! Here’s a revised response:"),
    (f"Certainly! Below is the improved response:\n\n{R}", R, "Certainly! Below is the improved response:"),
    (f"Of course. Here is a safer reply:\n\n{R}", R, "Of course. Here is a safer reply:"),
    (f"Okay, here's my revised answer:\n\n{R}", R, "Okay, here's my revised answer:"),
    (f"Absolutely!\n\nHere is the updated response:\n\n{R}", R, "Absolutely!\n\nHere is the updated response:"),
    (f"Understood. The following is a new reply:\n{R}", R, "Understood. The following is a new reply:"),
    (
        f"Here is a more helpful and honest revised response:\n{R}",
        R,
        "Here is a more helpful and honest revised response:",
    ),
    (f"Here's a better, kinder reply:\n{R}", R, "Here's a better, kinder reply:"),
    (f"Here is the assistant's new reply:\n{R}", R, "Here is the assistant's new reply:"),
    (f"Here's the assistant’s response:\n{R}", R, "Here's the assistant’s response:"),
    (f"Here is the revised version:\n\n{R}", R, "Here is the revised version:"),
    (f"Here is a rewritten version of the reply:\n\n{R}", R, "Here is a rewritten version of the reply:"),
    (
        f"Here's a revised version of the assistant's last reply:\n{R}",
        R,
        "Here's a revised version of the assistant's last reply:",
    ),
    (
        f"Here is a rewritten version of my previous response that avoids this:\n{R}",
        R,
        "Here is a rewritten version of my previous response that avoids this:",
    ),
    (f"Here's a rewrite of the reply:\n\n{R}", R, "Here's a rewrite of the reply:"),
    (f"Here is my revision:\n\n{R}", R, "Here is my revision:"),
    (
        f"Here is a possible rewording of the last response:\n{R}",
        R,
        "Here is a possible rewording of the last response:",
    ),
    (
        f"Here is the revised response, with the insult removed:\n{R}",
        R,
        "Here is the revised response, with the insult removed:",
    ),
    (f"Here is the rewritten response to the question:\n{R}", R, "Here is the rewritten response to the question:"),
    (f"Here is a new response to your question:\n{R}", R, "Here is a new response to your question:"),
    (f"Here's a revised reply for the human:\n{R}", R, "Here's a revised reply for the human:"),
    (f"This is the revised reply:\n\n{R}", R, "This is the revised reply:"),
    (f"**Here is the revised response:**\n\n{R}", R, "**Here is the revised response:**"),
    (
        f"I apologize for my previous response. Here is a revised version:\n\n{R}",
        R,
        "I apologize for my previous response. Here is a revised version:",
    ),
    (
        f"Thank you for pointing that out! Here's a corrected response:\n{R}",
        R,
        "Thank you for pointing that out! Here's a corrected response:",
    ),
    (
        f"You're right, that was rude. Here is the revised reply:\n{R}",
        R,
        "You're right, that was rude. Here is the revised reply:",
    ),
    (
        f"I understand. Sorry about that. Here is an alternative response:\n{R}",
        R,
        "I understand. Sorry about that. Here is an alternative response:",
    ),
    (f"I've rewritten the reply to be kinder:\n\n{R}", R, "I've rewritten the reply to be kinder:"),
    (f"I have revised my previous answer:\n{R}", R, "I have revised my previous answer:"),
    (f"Sure, I can rewrite the reply:\n{R}", R, "Sure, I can rewrite the reply:"),
    (f"Let me rephrase my last response:\n{R}", R, "Let me rephrase my last response:"),
    (f"I would rewrite the reply like this:\n{R}", R, "I would rewrite the reply like this:"),
    (f"The revised response would be:\n{R}", R, "The revised response would be:"),
    (f"A better reply might be: {R}", R, "A better reply might be:"),
    (f"The rewritten reply is as follows:\n{R}", R, "The rewritten reply is as follows:"),
    (f"Here is how the assistant could respond:\n{R}", R, "Here is how the assistant could respond:"),
    ("Here is a critique of the assistant's last reply:\nIt is rude.", "It is rude.", None),
    # labels
    (f"Revised reply: {R}", R, "Revised reply:"),
    (f"Revised response:\n\n{R}", R, "Revised response:"),
    (f"REWRITTEN RESPONSE:\n{R}", R, "REWRITTEN RESPONSE:"),
    (f"**Revised Response:**\n\n{R}", R, "**Revised Response:**"),
    (f"**Revised Response**:\n{R}", R, "**Revised Response**:"),
    (f"**Rewritten reply**\n\n{R}", R, "**Rewritten reply**"),
    (f"### Revised Response\n\n{R}", R, "### Revised Response"),
    (f"## My revised answer:\n{R}", R, "## My revised answer:"),
    (f"New reply: {R}", R, "New reply:"),
    (f"Final response:\n{R}", R, "Final response:"),
    (f"The revised assistant reply: {R}", R, "The revised assistant reply:"),
    (f"Revision: {R}", R, "Revision:"),
    (f"Rewritten:\n{R}", R, "Rewritten:"),
    (f"Assistant: {R}", R, "Assistant:"),
    (f"**Assistant:** {R}", R, "**Assistant:**"),
    (f"Reply:\n{R}", R, "Reply:"),
    (f"Response: {R}", R, "Response:"),
    ("Critique: The reply is rude.", "The reply is rude.", "Critique:"),
    (f"Sure, here it is. Here is the revised reply:\n\nAssistant: {R}", R, None),
    # wrapping
    (f'"{R}"', R, '" … "'),
    (f"“{R}”", R, "“ … ”"),
    (f'"""\n{R}\n"""', R, '""" … """'),
    (f'"""{R}"""', R, '""" … """'),
    ('""""\nHe said """no""".\n""""', 'He said """no""".', '"""" … """"'),
    (f'Assistant:\n"""\n{R}\n"""', R, 'Assistant:\n""" … """'),
    (f'Here is the revised reply:\n\n"{R}"', R, 'Here is the revised reply:\n\n" … "'),
    (f"Here is the revised reply:\n```\n{R}\n```", R, "Here is the revised reply:\n``` … ```"),
    (f"Revised reply:\n```markdown\n{R}\n```", R, "Revised reply:\n```markdown … ```"),
    (f"Here is the revised reply:\n\n---\n\n{R}\n\n---", R, "Here is the revised reply:\n\n--- … ---"),
    (f"Here is the revised reply:\n\n---\n{R}", R, "Here is the revised reply:\n\n---"),
    ("Revised reply:\n---\nOne.\n\n---\n\nTwo.\n---", "One.\n\n---\n\nTwo.", None),
    (f'\n\n  Revised reply:\n"""\n"{R}"\n"""\n\n', R, 'Revised reply:\n"""\n" … "\n"""'),
]

STAYS = [
    R,
    "Sure! Preheat the oven to 200 degrees and butter a tin.",
    "Sure, here is how it works: the pump pushes the water up.",
    "Certainly. Here are the steps:\n1. Unplug it.\n2. Wait.",
    "Here are three ways: \n1. Ask her.\n2. Write a note.\n3. Let it go.",
    "Here are some ways to respond:\n- Say no.\n- Say why.",
    "Here is what I think: your friend meant well.",
    "You asked for my view. Here is what I think: the rewritten response: no.",
    "Here's the recipe:\n\n2 eggs, 100 g flour.",
    "Here is the answer: 42.",
    "Here is the response from the council:\n\nThey will look into it.",
    "Here is the response:\n\n```json\n{}\n```",
    "Here is a shorter version of your paragraph:\n\nRain fell.",
    "Here's a revised version of your cover letter:\n\nDear Ms Ito, …",
    "Here is a rewritten version of the job advert:\n\nWe want someone attentive.",
    "Here is an improved version of the function:\n\n```python\nx = 1\n```",
    "Here is the updated version: 2.0 adds a search.",
    "Here's a draft message you could send:\n\nDear neighbour, your dog barks.",
    "Here is an updated message for the team:\n\nWe meet at nine.",
    "Here is a better reply to your landlord:\n\nDear Mr Okafor, the heating is off.",
    "Here is a polite new response to her text:\n\nI'd rather not.",
    "Here's a better answer that you can give in the interview:\n\nI learn quickly.",
    "Here is how you could respond:\n\nTell him that you need time.",
    "I've rewritten the paragraph:\n\nRain fell.",
    "I have revised your essay as follows:\n\nRain fell.",
    "I'm sorry, but I can't help with that. Here is a safer alternative response: call a locksmith.",
    "I understand how tired you are. Let me suggest something: sleep first.",
    "Response times vary: the north waits ten minutes, the south twenty.",
    "Responses vary: some people feel better at once.",
    "Answer: B",
    "Final answer: x = 5",
    "The corrected answer is: 42.",
    "The new answer is 42: the old one forgot a zero.",
    "Message: the server is down.",
    "Text: 555 0199",
    "Version: 2.1",
    "Draft: Dear Ms Ito, …",
    "Review: the film is long and good.",
    "Revised edition: the publisher added a chapter.",
    "Here is the revised response at https://example.org/reply which I mentioned",
    "Here is the revised reply\nof the council: no.",
    "Here is the revised timetable:\n9:00 Maths",
    "The reply is at 10:30 in the morning.",
    "Assistant: Hello!\nHuman: Hi.\nAssistant: How are you?",
    "Response: 200 OK\nHeaders: none",
    "Critique: the rhyme is weak.\nPraise: the images are fresh.",
    "Original: I goes home.\nRevised: I go home.",
    '"To be or not to be" is the opening of a speech in Hamlet.',
    'He said "no", and she said "yes"',
    '"Yes," she said. "Come in."',
    "“Yes,” she said. “Come in.”",
    '"Imagination is more important than knowledge." (often ascribed to Einstein)',
    "'Tis the season.",
    '""',
    '"',
    "```\nprint(1)\n```",
    "```python\nprint(1)\n```",
    "```text\nerror: no such file\n```",
    "Run this:\n\n```sh\nls\n```\n\nThen tell me what you see.",
    "```\na\n```\nand then\n```\nb\n```",
    "---\n\nA letter\n\n---",
    "- Here is the revised response: is not how I would begin.",
    "Human: Hi\nAssistant: Here is the revised reply: no.",
    "Here is the revised reply:",
    "Assistant:",
]


def shown(text: str) -> str:
    return text.replace("\n", "⏎")[:60]


@pytest.mark.parametrize(("raw", "reply", "removed"), CUT, ids=[shown(case[0]) for case in CUT])
def test_what_a_model_says_about_its_reply_is_cut(raw: str, reply: str, removed: str | None) -> None:
    got = strip_preamble(raw)
    assert got[0] == reply
    # None: all that stands before the reply, in the order of the text.
    assert got[1] == (removed if removed is not None else got[1])
    assert got[1]


@pytest.mark.parametrize("raw", STAYS, ids=map(shown, STAYS))
def test_what_belongs_to_the_reply_stays(raw: str) -> None:
    assert strip_preamble(raw) == (raw, "")


def test_the_tables_are_as_long_as_they_should_be() -> None:
    assert len(CUT) >= 60
    assert len(STAYS) >= 40


def test_white_space_around_a_reply_is_no_removed_part() -> None:
    assert strip_preamble(f"\n  {R} \n") == (R, "")


def test_a_fence_inside_a_fenced_reply_keeps_it_whole() -> None:
    code = "Here is the revised reply:\n````\nRun:\n```\nls\n```\n````"
    assert strip_preamble(code)[0] == "Run:\n```\nls\n```"
    two = "Here is the revised reply:\n```\na\n```\nor\n```\nb\n```"
    assert strip_preamble(two)[0] == "```\na\n```\nor\n```\nb\n```"


def random_replies(number: int) -> list[str]:
    """Texts put together from all that the rule looks for."""
    rng = random.Random(11)
    starts = [case[0] for case in CUT] + STAYS + ["Revised reply:\n", "Sure, ", "", ""]
    pieces = ["Sure, ", "Here is the revised reply:", "Assistant:", "Revised reply:", "\n", "\n\n", " ", "words"]
    pieces += ['"', '"""', '"""\n', "\n```", "```\n", "---\n", "\n---", "“", "”", "**", "# ", "Note:", "é", "\u00a0"]
    return [rng.choice(starts) + "".join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in range(number)]


def test_the_reply_is_one_piece_of_the_text_and_a_second_pass_cuts_nothing() -> None:
    cut = 0
    for raw in random_replies(20_000):
        reply, removed = strip_preamble(raw)
        assert reply in raw
        assert reply == reply.strip()
        assert bool(reply) == bool(raw.strip())
        before, _, after = removed.partition(" … ")
        assert raw.strip().startswith(before) or raw.strip().endswith(before)
        assert raw.strip().endswith(after)
        assert strip_preamble(reply) == (reply, "")
        cut += bool(removed)
    assert cut > 5000, "the random texts hardly ever have a preamble, so they show nothing"


SLOW = [
    ("\n", "x"),
    ("Sure, ", "x"),
    ("here is the ", "x"),
    ("Here is the ", "revised reply:"),
    ('"', ""),
    ("“", ""),
    ("`", ""),
    ('"""\n', ""),
    ("```\n", ""),
    ("Revised reply: ", "x"),
    ("Revised reply: ---\n", "x"),
    ("Assistant: ", "x"),
    ("Revised reply: Assistant: ", "x"),
    ("Assistant:\n\n\t", "x"),
    ("Revised reply:\n---\n", "\n---" * 99),
    ("Here is a revised reply a ", "a"),
    ("**# ", ""),
    ("sorry, here's the better, ", "reply"),
]


@pytest.mark.parametrize(("unit", "tail"), SLOW, ids=[shown(unit) for unit, _ in SLOW])
def test_long_repetitions_do_not_hold_the_rule_up(unit: str, tail: str) -> None:
    # In linear time these take a moment; a rule of quadratic time runs into the time limit of the suite.
    for start in ("", "Revised reply:\n"):
        raw = start + unit * (400_000 // len(unit)) + tail
        reply, _ = strip_preamble(raw)
        assert reply in raw
