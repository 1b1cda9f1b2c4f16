"""The documentation says what the code does, and whatever it or the code names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from jobs import reference
from pipelines.corpus import manifest, plan, plan_part
from pipelines.dataset import features, shards
from pipelines.video.base import REASONS
from tests.support import places, references

ROOT = places.ROOT
FORMATS = (ROOT / "docs" / "formats.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "tests/golden/README.md"]
SOURCES = references.sources(*references.PACKAGES, "benchmarks")
TESTS = references.sources("tests")


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_every_reason_is_listed_with_its_meaning() -> None:
    for reason, meaning in (REASONS | features.FEATURE_REASONS).items():
        assert f"| {reason} | {meaning} |" in FORMATS


@pytest.mark.parametrize(
    "schema",
    [
        manifest.MANIFEST_SCHEMA,
        plan_part.VIDEO_SCHEMA,
        plan.PLAN_SCHEMA,
        shards.INDEX_SCHEMA,
        features.FEATURE_INDEX_SCHEMA,
    ],
)
def test_every_column_is_described(schema: object) -> None:
    words = set(re.findall(r"[a-z_0-9]+", FORMATS))
    assert set(schema.names) <= words  # type: ignore[attr-defined]


def test_the_reference_is_what_the_configs_say() -> None:
    found = {file.name: file.read_text() for file in reference.FOLDER.iterdir()}
    assert found == reference.pages(), "run: make reference"


def test_architecture_lists_every_room_with_its_own_sentence() -> None:
    listed = dict(re.findall(r"^\| `pipelines/(\w+)/` \| (.+?) \|", ARCHITECTURE, re.M))
    rooms = {file.parent.name: file for file in ROOT.glob("pipelines/*/__init__.py")}
    assert listed == {room: ast.get_docstring(ast.parse(file.read_text())) for room, file in rooms.items()}


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_what_a_page_names_exists(file: Path) -> None:
    assert references.in_markdown(file.read_text(), file.parent) == []


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_what_comments_and_messages_name_exists(file: Path) -> None:
    assert references.in_python(file.read_text()) == []


def test_what_comments_of_tests_name_exists() -> None:
    wrong = {name(file): references.in_python(file.read_text(), messages=False) for file in TESTS}
    assert {file: found for file, found in wrong.items() if found} == {}


@pytest.mark.parametrize("file", ["Makefile", ".ci/run", "pyproject.toml"])
def test_what_a_build_file_names_exists(file: str) -> None:
    assert references.in_text((ROOT / file).read_text()) == []


# -- the checker itself ------------------------------------------------------------------------------------------------

RIGHT = """
# A page

See [formats](docs/formats.md), [its reasons](docs/formats.md#reasons) and [above](#a-page). `make test`, then
`autogaze preprocess input=VIDEOS output=/data/gaze clip.per_video=2` with `loader.cache_mb` or `threshold=0.03
clip.tiles=native`; pipelines/loading/order.py has `epoch_order` (pipelines/loading/order.py), which is
pipelines.loading.order.epoch_order. `autogaze cluster status|logs lab.yaml ID` for docs/method.md, section 'Tiling'.
The extra is `pip install -e '.[teachers]'`.

```sh
make demo PYTHON=python3.11
autogaze submit train policy data=a run=b \\
    optimizer.lr=1e-3 cluster=lab.yaml     # a comment
python benchmarks/decode.py --corpus VIDEOS
```
"""


def test_a_page_whose_names_all_exist_is_right() -> None:
    assert references.in_markdown(RIGHT) == []


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("see pipelines/nowhere.py", "pipelines/nowhere.py: no such file"),
        ("see docs/nowhere/*.md", "docs/nowhere/*.md: no such file"),
        ("tests/test_docs.py::test_of_nothing", "tests/test_docs.py: has no test_of_nothing"),
        ("see nowhere.md", "nowhere.md: no such page"),
        ("docs/method.md, section 'Nothing'", "docs/method.md: has no section 'Nothing'"),
        ("the method, section 'Tiling'", "a section is named without its page"),
        ("[a](nowhere.png)", "link to nowhere.png: no such file"),
        ("[a](docs/method.md#nothing)", "link to docs/method.md#nothing: no such section"),
        ("[a](#nothing)", "link to #nothing: no such section"),
        ("run `make nothing`", "make nothing: no such target"),
        ("```sh\nmake nothing\n```", "make nothing: no such target"),
        ("run `autogaze nothing`", "autogaze nothing: nothing: no such job"),
        ("`autogaze verify data=/data`", "autogaze verify data=/data: data: no such key"),
        ("`autogaze verify --dry-run`", "autogaze verify --dry-run: "),
        ("`autogaze preprocess clip.frames=many`", "autogaze preprocess clip.frames=many: clip.frames=many: "),
        ("`autogaze status|nothing /data`", "autogaze nothing /data: "),
        ("    autogaze rl data=a run=b nothing=SEED", "autogaze rl data=a run=b nothing=SEED: nothing: no such key"),
        ("\n    autogaze rl data=a \\\n        nothing.at_all=1", "autogaze rl data=a nothing.at_all=1: "),
        ("```sh\nautogaze submit rl nothing=1\n```", "autogaze submit rl nothing=1: nothing: no such key"),
        ("```sh\nautogaze cluster render lab.yaml 7\n```", "autogaze cluster render lab.yaml 7: id: no such key"),
        ("set `nothing=1`", "nothing=1: no such key"),
        ("set `clip.nothing=`", "clip.nothing=: no such key"),
        ("the key `clip.nothing`", "clip.nothing: no such key"),
        ("pipelines.loading.order.nothing", "pipelines.loading.order.nothing: no such module or name"),
        ("pipelines.loading.loader.ShardLoader.nothing", "pipelines.loading.loader.ShardLoader.nothing: no such"),
        ("`nothing` (pipelines/loading/order.py)", "pipelines/loading/order.py: has no nothing"),
        ("```python\nfrom autogaze.gaze import Nothing\n```", "autogaze.gaze.Nothing: no such name"),
        ("```sh\npython benchmarks/decode.py --nothing\n```", "benchmarks/decode.py: has no --nothing"),
        ("`pip install 'autogaze-pipelines[nothing]'`", "[nothing]: no such extra"),
        ("as spec 4.2 says", "spec 4: is not part of the repository"),
    ],
)
def test_a_name_that_leads_nowhere_is_found_on_a_page(page: str, wrong: str) -> None:
    found = references.in_markdown(f"# A page\n\n{page}\n")
    assert len(found) == 1
    assert found[0].startswith(wrong)


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("# see docs/nowhere.md\n", "docs/nowhere.md: no such file"),
        ("x = 1  # docs/method.md,\n# section 'Nothing'\n", "docs/method.md: has no section 'Nothing'"),
        ('"""Run `autogaze nothing`."""\n', "autogaze nothing: "),
        ('def f() -> None:\n    """With `clip.nothing=2`."""\n', "clip.nothing=2: no such key"),
        ('x = f"give clip.nothing={1}"\n', "clip.nothing=: no such key"),
        ('x = "see pipelines/nowhere.py"\n', "pipelines/nowhere.py: no such file"),
    ],
)
def test_a_name_that_leads_nowhere_is_found_in_a_source(source: str, wrong: str) -> None:
    found = references.in_python(source)
    assert any(line.startswith(wrong) for line in found)


def test_headings_are_not_read_out_of_code() -> None:
    assert references.headings("# One\n```sh\n# no heading\n```\n## `Two` and 3\n") == ["One", "`Two` and 3"]
