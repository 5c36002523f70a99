"""Tables in Markdown are those of the recorded runs."""

import json
from pathlib import Path

import pytest

from mmjax.report import results

ROOT = Path(__file__).parents[2]


def record(**changes):
    metrics = {"twemoji/R@10": 0.351, "twemoji/R@10_chance": 0.00643, "twemoji/images": 1555.0}
    return {
        "stem": "clip_emoji", "size": "small", "overrides": [], "seed": 0, "commit": "abc", "steps": 2500,
        "devices": "2 x cpu", "date": "2026-11-25", "seconds": 330.0, "metrics": metrics, "judge": None, **changes,
    }  # fmt: skip


def test_a_table_is_put_between_its_marks_and_nothing_else_changes():
    found = results.render("before\n<!-- results:clip_emoji -->\nold\n\n<!-- /results -->\nafter", [record()])
    assert found == (
        "before\n<!-- results:clip_emoji -->\n"
        "| run | twemoji/R@10 | steps | minutes | seed | devices | commit |\n"
        "|---|---|---|---|---|---|---|\n"
        "| clip_emoji small | **0.351** (chance 0.00643) | 2,500 | 5.5 | 0 | 2 x cpu | abc |\n"
        "<!-- /results -->\nafter"
    )
    assert results.render(found, [record()]) == found


def test_the_mark_chooses_metrics_and_size():
    runs = [record(), record(size="tiny", metrics={"loss": 1.0})]
    table = results.table("clip_emoji-small", ["twemoji/images"], runs)
    assert "**1,555**" in table
    assert "tiny" not in table
    assert "| – |" in results.table("clip_emoji", ["loss", "twemoji/images"], runs)
    assert "small" not in results.table("clip_emoji", ["loss"], runs)  # a run that has none of the metrics


def test_experiments_that_are_compared_share_a_table():
    runs = [record(stem="dpo"), record(stem="other"), record(stem="ppo")]
    text = results.render("<!-- results:ppo,dpo twemoji/R@10 -->\n<!-- /results -->", runs)
    assert [row.split()[1] for row in text.splitlines()[3:-1]] == ["ppo", "dpo"]


def test_the_newest_of_equal_runs_counts():
    metrics = [{"a": value, "a_chance": 0.1} for value in (0.25, 0.5)]
    runs = [record(metrics=metrics[0]), record(seed=1, metrics=metrics[0]), record(metrics=metrics[1])]
    rows = results.table("clip_emoji", [], runs).splitlines()[2:]
    assert ["**0.500**" in row for row in rows] == [True, False]
    assert len(results.runs_of("clip_emoji", [record(), record(overrides=["steps=1"])])) == 2


def test_what_a_judge_said_stands_beside_its_name():
    first, second, *rows = results.table("clip_emoji", [], [record(), record(seed=1, judge="c0ffee")]).splitlines()
    assert first.endswith("| commit | judge |")
    assert [row.split(" | ")[-1] for row in rows] == ["– |", "c0ffee |"]
    assert first.count("|") == second.count("|") == rows[0].count("|")


def test_text_of_a_user_stays_in_its_cell():
    assert "a\\|b" in results.table("clip_emoji", [], [record(overrides=["a|b"])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:none -->\n<!-- /results -->", "no result is recorded for 'none'; there are clip_emoji-small"),
        ("<!-- results:clip_emoji wrong -->\n<!-- /results -->", "hold no wrong; they hold twemoji/R@10"),
        ("<!-- results:clip_emoji -->\n", "has no <!-- /results -->"),
        ("<!-- plans -->\n", "has no <!-- /plans -->"),
        ("<!-- results:clip_emoji -->\n<!-- results:clip_emoji -->\n<!-- /results -->", "has no <!-- /results -->"),
    ],
)
def test_mistakes_are_told(text, message):
    with pytest.raises(ValueError, match=message):
        results.render(text, [record()])


def test_the_command_writes_and_checks(tmp_path, capsys):
    readme, file = tmp_path / "README.md", tmp_path / "results.jsonl"
    readme.write_text("<!-- results:clip_emoji -->\n<!-- /results -->\n")
    arguments = [str(readme), "--results", str(file)]
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl does not exist; `mmjax train FILE --record`"):
        results.main(arguments)
    file.write_text(json.dumps(record()) + "\n")
    assert results.main([*arguments, "--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert "0.351" not in readme.read_text()
    assert results.main(arguments) == 0
    assert "0.351" in readme.read_text()
    assert results.main([*arguments, "--check"]) == 0


def plan(**changes):
    return {
        "stem": "clip_emoji", "size": "paper", "overrides": [], "commit": "abc", "batch_size": 32768, "fits": True,
        "topology": "v5e:16x16", "mesh": "data 16 x fsdp 16", "gib": 6.331, "gib_limit": 15.75, "flops": 1.25e14,
        "collectives": {"all-gather": 12, "all-to-all": 0}, "compile_seconds": 1.0, "date": "2026-11-25", **changes,
    }  # fmt: skip


def test_the_newest_plan_of_each_machine_is_shown():
    plans = [plan(gib=9.0), plan(topology="v6e:8x8"), plan()]
    found = results.render("a\n<!-- plans -->\nold\n<!-- /plans -->\nb", [], plans)
    assert found.splitlines()[4] == (
        "| clip_emoji paper | v5e:16x16 | data 16 x fsdp 16 | 32,768 | **6.33** | 15.75 | 125.0 | 12 all-gather | abc |"
    )
    assert found.count("clip_emoji paper") == 2
    assert "9.00" not in found


def test_the_readme_holds_the_recorded_numbers():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.MARK.search(text), "README.md shows no results"
    assert results.render(text, results.read(ROOT / results.RESULTS), results.read(ROOT / results.PLANS)) == text


def test_a_share_of_questions_stands_beside_the_majority_and_its_interval():
    metrics = {"twemoji/what": 0.5, "twemoji/what/majority": 0.02, "twemoji/what/n": 100.0}
    assert results.cell(metrics, "twemoji/what") == "**0.500** (majority 0.0200; 0.40 to 0.60, n 100)"
    # By hand: 10 of 10, lower end 10 / (10 + 1.96 ** 2).
    low, high = results.wilson(1.0, 10)
    assert low == pytest.approx(10 / (10 + 1.959964**2))
    assert high == pytest.approx(1.0)


def test_questions_are_rows_and_runs_are_columns():
    def run(stem, metrics):
        return {"stem": stem, "size": "small", "overrides": [], "seed": 0, "metrics": metrics}

    seen = {"t/what": 0.8, "t/what/majority": 0.02, "t/what/n": 100.0, "t/where": 0.5, "t/where/n": 50.0}
    runs = [run("llama", {"t/what": 0.0, "t/what/majority": 0.02, "t/what/n": 100.0}), run("shikra", seen)]
    text = "<!-- answers:llama-small,shikra t/what t/where -->\nold\n<!-- /answers -->"
    found = results.render(text, runs).splitlines()
    assert found[1] == "| question | n | commonest | llama small | shikra small |"
    assert found[3] == "| t/what | 100 | 0.0200 | **0.00** (0.00 to 0.04) | **0.800** (0.71 to 0.87) |"
    assert found[4] == "| t/where | 50 | – | – | **0.500** (0.37 to 0.63) |"
    with pytest.raises(ValueError, match="hold no t/count of counted questions"):
        results.render(text.replace("t/where", "t/count"), runs)
    with pytest.raises(ValueError, match="has no <!-- /results -->"):
        results.render(text.replace("/answers", "/results"), runs)
