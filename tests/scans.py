"""Made-up rows in the schemas of the hub: conversations, and scanned pages with questions."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fractal_k8s.data.forms import forms

NANOCHAT = "morgan/docvqa-nanochat"
TRAIN = "data/train-00000-of-00001.parquet"
VALIDATION = "data/validation-00000-of-00001.parquet"


def parquet(given: list[dict[str, Any]], rows: int | None = None) -> bytes:
    """A parquet file of the given rows, or of the first so many of them."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(given).slice(0, rows), buffer)
    return buffer.getvalue()


def chats(count: int) -> list[dict[str, Any]]:
    return [{"messages": messages} for messages in forms(count)]


def scanned(number: int, **changes: Any) -> dict[str, Any]:
    """A row as pixparse/docvqa-single-page-questions has them."""
    asked, answered = list(forms(number + 1))[-1]
    page, question = asked["content"].split("\n\nQuestion: ")
    texts = page.split("\n")[2:] + [f"line {k} of no use" for k in range(number % 7 * 5)]
    box = [0, 0, 9, 0, 9, 9, 0, 9]
    lines = [
        {
            "bounding_box": box,
            "text": text,
            "words": [{"bounding_box": box, "text": w, "confidence": None} for w in text.split()],
        }
        for text in texts
    ]
    return {
        "image": {"bytes": b"\x89PNG" * 50, "path": "x.png"},
        "question_id": number,
        "question": question,
        "answers": [answered["content"]],
        "data_split": "train",
        "ocr_results": {
            "page": 1,
            "clockwise_orientation": 0.1,
            "width": 1700,
            "height": 2200,
            "unit": "pixel",
            "lines": lines,
        },
        "other_metadata": {
            "ucsf_document_id": f"abcd{number:04}",
            "ucsf_document_page_no": str(number % 9 + 1),
            "doc_id": number,
            "image": "documents/x.png",
        },
        **changes,
    }
