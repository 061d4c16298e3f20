"""Made-up business documents as OCR reads them, each with a question whose answer is on the page.

They stand in for DocVQA where there are no files: the same template, rows of some hundred tokens,
labels in a few percent of the positions. Whatever is drawn is a function of the number of the row,
of the set, and of this file; only `Random.random` is used, whose series Python keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar

Messages = list[dict[str, Any]]
T = TypeVar("T")

_FIRST: Final = (
    "Alice Arthur Barbara Carl Clara David Dorothy Edward Elena Frank Grace Harold Helen Irene "
    "James Julia Karen Louis Maria Martin Nancy Oscar Paula Peter Robert Rosa Samuel Susan "
    "Thomas Walter"
).split()
_LAST: Final = (
    "Adams Baker Bennett Brooks Carter Cole Dawson Ellis Fisher Foster Graham Hayes Hughes Jensen "
    "Keller Lawson Mason Morgan Nolan Olsen Palmer Porter Quinn Reed Shaw Stone Turner Vance "
    "Walsh Young"
).split()
_FIRMS: Final = (
    "Acme Apex Atlas Beacon Central Crown Delta Eagle Falcon General Harbor Juniper Keystone "
    "Liberty Meridian National Orion Pacific Premier Summit Union Vulcan Western Zenith"
).split()
_TRADES: Final = (
    "Chemical,Electric,Foods,Freight,Instruments,Laboratories,Paper,Printing,Steel,Supply,Tobacco,"
    "Tool"
).split(",")
_SUFFIXES: Final = "Co.,Inc.,Corp.,Ltd.,and Sons".split(",")
_CITIES: Final = (
    "Akron,Albany,Boston,Chicago,Dallas,Dayton,Denver,Detroit,Fresno,Houston,Memphis,Mobile,"
    "New York,Newark,Omaha,Phoenix,Reno,Richmond,Seattle,Tampa,Toledo,Tulsa"
).split(",")
_STREETS: Final = "Cedar Church Elm Front Grant High Lake Main Market Mill Oak Park Pine".split()
_MONTHS: Final = (
    "January February March April May June July August September October November December"
).split()
_GOODS: Final = (
    "bolts,cartons,copy paper,drums,envelopes,filters,gaskets,glass tubes,gloves,hinges,ink,labels,"
    "lamps,motor oil,paint,pumps,ribbons,seals,solvent,steel wire,tape,valves"
).split(",")
_SUBJECTS: Final = (
    "annual budget,advertising plan,brand review,consumer survey,field test,filter study,"
    "laboratory visit,press release,price change,quarterly report,safety training,sales meeting,"
    "shipping delay,staff training,summer schedule,warehouse move"
).split(",")
_DEPARTMENTS: Final = (
    "Accounting,Advertising,Engineering,Marketing,Personnel,Purchasing,Research,Sales,Shipping"
).split(",")


class _Draw:
    """Draws from one seeded series."""

    def __init__(self, key: str) -> None:
        self._random = Random(key)

    def below(self, count: int) -> int:
        return int(self._random.random() * count)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def one(self, choices: list[T] | tuple[T, ...]) -> T:
        return choices[self.below(len(choices))]

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def some(self, choices: list[T], count: int) -> list[T]:
        """So many different ones, in the order drawn."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    # --- what documents are made of ---

    def person(self) -> str:
        return f"{self.one(_FIRST)} {self.one(_LAST)}"

    def firm(self) -> str:
        return f"{self.one(_FIRMS)} {self.one(_TRADES)} {self.one(_SUFFIXES)}"

    def date(self) -> str:
        return f"{self.one(_MONTHS)} {self.between(1, 28)}, {self.between(1961, 1998)}"

    def address(self) -> str:
        return f"{self.between(1, 99)} {self.one(_STREETS)} Street, {self.one(_CITIES)}"

    def phone(self) -> str:
        return f"{self.between(200, 989)}-{self.between(1000, 9999)}"


@dataclass(frozen=True)
class Fact:
    """Something that a page says: how one asks for it, how one tells it, and the answer."""

    questions: tuple[str, ...]
    sentence: str
    answer: str


@dataclass(frozen=True)
class Page:
    """A page's lines as OCR reads them, and what they say."""

    lines: tuple[str, ...]
    facts: tuple[Fact, ...]


def _label(draw: _Draw, text: str, value: str) -> str:
    """A labelled field; scans lose a colon or shout now and then."""
    label = text.upper() if draw.chance(0.25) else text
    return f"{label} {value}" if draw.chance(0.1) else f"{label}: {value}"


def _invoice(draw: _Draw) -> Page:
    seller, buyer, date = draw.firm(), draw.firm(), draw.date()
    number, terms = str(draw.between(1000, 9999)), str(draw.one((10, 15, 30, 45, 60, 90)))
    goods = draw.some(_GOODS, draw.between(1, 3))
    rows = [(name, draw.between(2, 60), 5 * draw.between(1, 40)) for name in goods]
    total = f"${sum(count * price for _, count, price in rows):,}.00"
    lines = (
        seller,
        draw.address(),
        _label(draw, "Invoice No", number),
        _label(draw, "Date", date),
        _label(draw, "Sold to", buyer),
        *(f"{count} {name} at ${price}.00" for name, count, price in rows),
        _label(draw, "Total", total),
        _label(draw, "Terms", f"{terms} days"),
    )
    name, count, _ = draw.one(rows)
    return Page(
        lines,
        (
            Fact(
                ("What is the invoice number?", "Which number does the invoice have?"),
                f"The invoice of {seller} has the number {number}.",
                number,
            ),
            Fact(
                ("What is the total?", "What is the total amount?", "How much is to be paid?"),
                f"In all {buyer} has to pay {total}.",
                total,
            ),
            Fact(
                ("Who is the buyer?", "To whom were the goods sold?"),
                f"The goods were sold to {buyer}.",
                buyer,
            ),
            Fact(
                ("What is the date of the invoice?", "When was the invoice written?"),
                f"It was written on {date}.",
                date,
            ),
            Fact(
                (f"How many {name} were sold?", f"What is the quantity of {name}?"),
                f"They ordered {count} {name}.",
                str(count),
            ),
            Fact(
                ("Within how many days must it be paid?", "What are the terms?"),
                f"It is due within {terms} days.",
                f"{terms} days",
            ),
        ),
    )


def _letter(draw: _Draw) -> Page:
    sender, reader, firm = draw.person(), draw.person(), draw.firm()
    date, meeting, subject = draw.date(), draw.date(), draw.one(_SUBJECTS)
    title = draw.one(("Manager", "President", "Secretary", "Director", "Vice President"))
    phone = draw.phone()
    lines = (
        firm,
        draw.address(),
        date,
        f"Dear {reader.split()[1] if draw.chance(0.5) else reader}:",
        f"Thank you for your note on the {subject}.",
        f"We shall meet on {meeting}.",
        _label(draw, "Phone", phone),
        "Sincerely,",
        sender,
        title,
    )
    return Page(
        lines,
        (
            Fact(
                ("Who wrote the letter?", "Who signed the letter?"),
                f"{sender} of {firm} wrote the letter.",
                sender,
            ),
            Fact(
                ("What is the letter about?", "Which subject does the letter name?"),
                f"The letter is about the {subject}.",
                subject,
            ),
            Fact(
                ("When is the meeting?", "On which day shall they meet?"),
                f"They will meet on {meeting}.",
                meeting,
            ),
            Fact(
                ("What is the date of the letter?", "When was the letter written?"),
                f"The letter was written on {date}.",
                date,
            ),
            Fact(
                ("What is the phone number?", "Which number can be called?"),
                f"The phone number is {phone}.",
                phone,
            ),
            Fact(
                ("What is the title of the writer?", "Which position does the writer have?"),
                f"The writer is the {title}.",
                title,
            ),
        ),
    )


def _memo(draw: _Draw) -> Page:
    sender, reader, copy = draw.person(), draw.person(), draw.person()
    date, due, subject = draw.date(), draw.date(), draw.one(_SUBJECTS)
    department = draw.one(_DEPARTMENTS)
    lines = (
        draw.one(("MEMORANDUM", "Inter-Office Memo", "Memo")),
        _label(draw, "To", reader),
        _label(draw, "From", sender),
        _label(draw, "cc", copy),
        _label(draw, "Date", date),
        _label(draw, "Department", department),
        _label(draw, "Subject", subject),
        f"Please send your comments by {due}.",
    )
    return Page(
        lines,
        (
            Fact(
                ("Who is the memo to?", "To whom is the memo addressed?"),
                f"The memo went to {reader}.",
                reader,
            ),
            Fact(
                ("Who is the memo from?", "Who wrote the memo?"), f"It came from {sender}.", sender
            ),
            Fact(("Who is in cc?", "Who gets a copy?"), f"A copy went to {copy}.", copy),
            Fact(
                ("What is the subject?", "What is the memo about?"),
                f"Its subject is the {subject}.",
                subject,
            ),
            Fact(
                ("By when are comments due?", "When must comments be sent?"),
                f"Comments are due by {due}.",
                due,
            ),
            Fact(
                ("Which department is named?", "What is the department?"),
                f"It was written in the department of {department}.",
                department,
            ),
        ),
    )


def _table(draw: _Draw) -> Page:
    firm, year = draw.firm(), draw.between(1961, 1998)
    first = draw.below(8)
    months = _MONTHS[first : first + draw.between(3, 5)]
    sales = [(month, str(draw.between(100, 999))) for month in months]
    goods = draw.one(_GOODS)
    lines = (
        f"{firm} {year}",
        f"Sales of {goods}",
        draw.one(("Month Units", "MONTH UNITS", "Month  Units sold")),
        *(f"{month} {units}" for month, units in sales),
        _label(draw, "Source", f"{draw.one(_DEPARTMENTS)} Department"),
    )
    return Page(
        lines,
        (
            *(
                Fact(
                    (f"How many units were sold in {month}?", f"What is the value of {month}?"),
                    f"In {month} {firm} sold {units} units.",
                    units,
                )
                for month, units in sales
            ),
            Fact(
                ("Which year is shown?", "What is the year of the table?"),
                f"The table is of the year {year}.",
                str(year),
            ),
            Fact(
                ("Which goods does the table count?", "What was sold?"),
                f"It counts the {goods} that were sold.",
                goods,
            ),
        ),
    )


_KINDS: Final[tuple[Callable[[_Draw], Page], ...]] = (_invoice, _letter, _memo, _table)


def page_text(page: Page, number: int) -> str:
    """The page as DocVQA rows give it, without the question."""
    return "\n".join(("Document:", f"Page {number}", *page.lines))


def forms(rows: int) -> Iterator[Messages]:
    """A page and a question about it, and the answer, `rows` times."""
    for number in range(rows):
        draw = _Draw(f"forms {number}")
        page = draw.one(_KINDS)(draw)
        fact = draw.one(page.facts)
        asked = f"{page_text(page, draw.between(1, 9))}\n\nQuestion: {draw.one(fact.questions)}"
        yield _conversation(asked, fact.answer)


def statements(rows: int) -> Iterator[Messages]:
    """A sentence and a question about it: what a base model learns of questions and answers.

    To find the answer on a page is what is left for a fine-tune on `forms` to teach.
    """
    for number in range(rows):
        draw = _Draw(f"statements {number}")
        fact = draw.one(draw.one(_KINDS)(draw).facts)
        yield _conversation(f"{fact.sentence}\n\nQuestion: {draw.one(fact.questions)}", fact.answer)


def running_text(documents: int) -> Iterator[str]:
    """Text for a base model: pages, and under each what it says in sentences."""
    for number in range(documents):
        draw = _Draw(f"text {number}")
        page = draw.one(_KINDS)(draw)
        told = draw.some(list(page.facts), draw.between(2, 4))
        said = " ".join(fact.sentence for fact in told)
        yield f"{page_text(page, draw.between(1, 9))}\n\n{said}\n"


def _conversation(asked: str, answer: str) -> Messages:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
