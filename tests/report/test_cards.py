"""Model cards: whatever stands in a header, a concept or a licence is literal text on the page and data in the front matter."""

from __future__ import annotations

import ast
import re

import pandas as pd
import pytest
import yaml

from persres.config.schema import Base
from persres.datasets.layout import Concept
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.report.cards import card_text
from persres.report.table_text import markdown as table
from persres.report.table_text import table_notes, write_table
from persres.report.terminal import show_tables
from persres.units.context import Context
from persres.untrusted.text import printable

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![i](http://evil/x.png)",
    "a\n---\nlicense: mit\n---\n# owned",
    "a | b `c` **d** _e_ ~~f~~",
    "```\nrm -rf ~\n```",
    "\x1b[31mred\x1b[0m \u202ednuora",
    "{{ x }} ${y} '\"",
    "&lt;b&gt;",
    "\ud800",
]
SCORES = {"base": {"images": 2, "dino": 0.1}, "ours_lag": {"images": 2, "dino": 0.6}}


def card(macro_class: str = "mug", licence: str = "CC0", scores=SCORES, **more) -> str:
    base = Base().model_dump() | {"rare_token": more.pop("rare_token", "sks"), "token": more.pop("token", "<v*>")}
    spec = {"base": base, "model": more.pop("model", "hub/name@01"), "concept": more.pop("concept", "heart_mug")}
    spec |= {"variant": "ours", "macro_class": macro_class, "settings": {"method": more.pop("method", "ours")}}
    spec |= {"photos": [{"path": "a", "digest": "12"}], "code": more.pop("code", "c0de")}
    info = {"format": "persres-residual-1", "spec": spec, "spec_hash": more.pop("spec_hash", "5bec"), "parameters": 5}
    info |= {"versions": {"persres": more.pop("version", "1.0")}}
    assert not more
    return card_text(info, Concept("heart_mug", "object", macro_class, (), licence), scores, "ours_lag")


def parts(text: str) -> tuple[dict, str]:
    start, front, page = text.split("---\n", 2)
    assert not start
    return yaml.safe_load(front), page


def check_literal(text: str) -> tuple[dict, str]:
    """The page without its code spans has no HTML, link, image or heading but ours, and no control character."""
    front, page = parts(text)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        page.splitlines()[1],
        "## Scores",
        "## Provenance",
    ]
    assert page.count("```") == 2 and page.count("\n\n") == parts(card())[1].count("\n\n")
    prose = re.sub(r"```sh.*?```|`[^`\n]*`", "", page, flags=re.S)
    assert (
        "<" not in prose
        and not re.search(r"(?<!\\)\]\((?!heart_mug\.png\))", prose)
        and "`" not in re.sub(r"\\`", "", prose)
    )
    return front, page


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize(
    "field", ["macro_class", "licence", "rare_token", "token", "model", "method", "code", "spec_hash", "version"]
)
def test_no_field_is_markup(field, text):
    front, _ = check_literal(card(**{field: text}))
    assert front["license"] == "other" and front["pipeline_tag"] == "text-to-image", "no key was added or replaced"
    assert set(front) == set(parts(card())[0])


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_names_of_configs_and_scores_are_no_markup(text):
    front, page = check_literal(card(scores={text: {text: 1.0, "images": 2}}))
    (row,) = [line for line in page.splitlines() if line.startswith("| ") and "config" not in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4, "three cells"
    assert len(front["persres"]["scores"]) == 1


@pytest.mark.parametrize("name", ["../x", "a b", "<b>", "a`b", "", "x" * 65, "a.png)[b](c"])
def test_a_concept_that_is_no_name_has_no_card(name):
    with pytest.raises(PersresError, match=r"concept .* is not usable"):
        card(concept=name)


def test_a_plain_card_has_no_escapes():
    _, page = check_literal(card())
    assert page.startswith("\n# heart_mug: a mug, trained by method `ours`\n") and "\\" not in page
    assert "In prompts it is `<v*> mug`" in page and "| ours_lag | 2 | 0.6000 |" in page


@pytest.mark.parametrize("cell", ["a|b", "a\nb", "a\r\n| c | d |", "<b>", "\x1b[1m"])
def test_a_cell_of_a_table_stays_one_cell(cell):
    from persres.untrusted.text import markdown

    lines = table(["x", "y"], [[markdown(cell), "1"]]).splitlines()
    assert len(lines) == 3 and len(re.findall(r"(?<!\\)\|", lines[2])) == 3 and "<" not in lines[2]


@pytest.mark.parametrize("text", [*HOSTILE[:6], 'x", __import__("os"), "'], ids=range(7))
def test_the_readme_of_personalize_is_one_page_and_its_code_one_string(text):
    from persres.personalization import usage_text

    plain, page = (usage_text(load_profile(), "mug", name) for name in ("mug", text))
    assert len(page.splitlines()) == len(plain.splitlines()) and all(c.isprintable() or c == "\n" for c in page)
    code = ast.parse(page.split("```python\n")[1].split("```")[0])
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
    assert len(calls) == len(
        [n for n in ast.walk(ast.parse(plain.split("```python\n")[1].split("```")[0])) if isinstance(n, ast.Call)]
    )


TABLE = "config,clip_text,concepts,images,params\n{},0.5,2,4,10\n"


@pytest.mark.parametrize("text", ["[red]x[/red]", "[link=http://x]y[/link]", "[/]", "\x1b[31m", "a\u202eb"])
def test_a_table_in_the_terminal_is_plain_text(tmp_path, capsys, text):
    tables = tmp_path / "[bold]" / "tables"
    tables.mkdir(parents=True)
    (tables / "table1.csv").write_text(TABLE.format(text))
    show_tables(tmp_path / "[bold]")
    shown = capsys.readouterr().out
    assert printable(text)[:8] in shown and "\x1b" not in shown and "[bold]/learned/" in shown


@pytest.mark.parametrize(
    "data",
    [b"", b"config\n", b"\xff\xfe\0", TABLE.encode().splitlines()[0], b"config,clip_text,concepts,images\na,1,1,1\n",
     TABLE.replace("0.5", "half").encode(), TABLE.replace(",10", ",").encode(), TABLE.replace(",2,", ",many,").encode(), b'"a\n"b,"\n1'],
    ids=range(9),
)  # fmt: skip
def test_a_table_that_no_run_wrote_is_one_sentence(tmp_path, data):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table1.csv").write_bytes(data)
    with pytest.raises(PersresError, match=r"table1\.csv .*; run persres run tables") as caught:
        show_tables(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", HOSTILE[:6], ids=range(6))
def test_a_table_of_the_report_has_no_markup_from_outside(tmp_path, text):
    write_table(tmp_path / "t", text, pd.DataFrame({"config": [text], text: [text], "images": [1]}), "- note")
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 7 and all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines[2:5])
    assert not any("<" in line or re.search(r"(?<!\\)[\[`*]", line) for line in lines)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"source": 1, "concepts": {}}', b'{"source": "x", "concepts": {"a": 1}}']
)
def test_macro_classes_that_are_none_are_one_sentence(tmp_path, data):
    context = Context(load_profile(), tmp_path, tmp_path / "work")
    (tmp_path / "macro_class").mkdir()
    (tmp_path / "macro_class" / "macro_class.json").write_bytes(data)
    with pytest.raises(PersresError, match=r"macro_class\.json .*; run persres run macro_class"):
        table_notes(context, pd.DataFrame({"concept": ["a"]}), [])
