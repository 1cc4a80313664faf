import click
import pytest
from click.testing import CliRunner, Result

from bmft_cli.config import config_file, config_option, method_settings
from bmft_cli.options import Pair


@click.group()
def tool() -> None:
    pass


@tool.command()
@config_option
@click.option("--data", required=True)
@click.option("--sensitive", multiple=True)
@click.option("--epochs", type=Pair(int), default="10")
@click.option("--seed", type=int, default=0)
@click.option("--multi-label", is_flag=True)
@click.option("--trust-pickle", is_flag=True)
def fit(**values: object) -> None:
    for name, value in values.items():
        click.echo(f"{name}={value}")
    click.echo(f"file={config_file()} settings={method_settings()}")


@tool.command()
@config_option
@click.option("--policy")
def check(policy: str) -> None:
    click.echo(f"policy={policy}")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> Result:
        return CliRunner().invoke(tool, args)

    return call


def test_a_bmft_toml_in_the_folder_gives_every_option(run, tmp_path):
    (tmp_path / "bmft.toml").write_text(
        'data = "a.csv"\nsensitive = ["sex", "age:40,60"]\nepochs = [3, 4]\nmulti-label = true\n'
    )
    result = run("fit")
    assert result.exit_code == 0, result.output
    assert "data=a.csv\nsensitive=('sex', 'age:40,60')\nepochs=(3, 4)\nseed=0\n" in result.output
    assert "multi_label=True" in result.output
    assert "file=bmft.toml" in result.output


def test_flags_win_over_the_file(run, tmp_path):
    (tmp_path / "bmft.toml").write_text('data = "a.csv"\nseed = 4\nsensitive = ["sex"]\n')
    output = run("fit", "--seed", "5", "--sensitive", "age").output
    assert "seed=5" in output
    assert "sensitive=('age',)" in output


def test_a_single_text_is_one_value_of_a_repeatable_option(run, tmp_path):
    (tmp_path / "bmft.toml").write_text('data = "a.csv"\nsensitive = "sex"\n')
    assert "sensitive=('sex',)" in run("fit").output


def test_pyproject_is_read_where_there_is_no_bmft_toml(run, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.bmft]\ndata = "p.csv"\n')
    assert "data=p.csv" in run("fit").output
    (tmp_path / "bmft.toml").write_text('data = "b.csv"\n')
    assert "data=b.csv" in run("fit").output


def test_a_pyproject_without_our_table_is_not_ours(run, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.other]\ndata = "p.csv"\n')
    assert run("fit").exit_code == 2


def test_config_names_another_file(run, tmp_path):
    (tmp_path / "bmft.toml").write_text('data = "b.csv"\n')
    (tmp_path / "best.toml").write_text('data = "c.csv"\n[settings]\nfraction = 0.5\n')
    output = run("fit", "--config", "best.toml").output
    assert "data=c.csv" in output
    assert "file=best.toml settings={'fraction': 0.5}" in output


def test_a_commands_own_table_wins_and_is_not_read_by_others(run, tmp_path):
    (tmp_path / "bmft.toml").write_text('data = "a.csv"\nseed = 1\n[fit]\nseed = 2\n[check]\npolicy = "p.toml"\n')
    assert "seed=2" in run("fit").output
    assert "policy=p.toml" in run("check").output


def test_an_option_of_another_command_is_no_unknown_key(run, tmp_path):
    (tmp_path / "bmft.toml").write_text('data = "a.csv"\npolicy = "p.toml"\n')
    assert run("fit").exit_code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sensitve = ["sex"]', "unknown key 'sensitve'. Did you mean 'sensitive'?"),
        ("[fit]\npolicy = 'p.toml'", "unknown key 'policy'"),
        ("zzz = 1", "Keys are the names of options"),
        ("[sensitive]\na = 1", "expected a text or a number"),
        ("seed = 1.5", "'1.5' is not a valid integer"),
        ("seed = true", "expected a text or a number"),
        ("data = ['a', 'b']", "expected a text or a number"),
        ("multi-label = 'yes'", "expected true or false"),
        ("epochs = [1, 2, 3]", "not one number"),
        ("seed = 2024-01-01", "expected a text or a number"),
        ("trust-pickle = true", "--trust-pickle is for the command line only"),
        ("config = 'x.toml'", "--config is for the command line only"),
        ("data = ", "is no TOML file"),
    ],
)
def test_what_a_file_must_not_say_is_refused_in_words(run, tmp_path, text, message):
    (tmp_path / "bmft.toml").write_text(text + "\n")
    result = run("fit", *([] if "data" in text else ["--data", "a.csv"]))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_file_that_is_not_text_is_refused(run, tmp_path):
    (tmp_path / "bmft.toml").write_bytes(b"\xff\xfe\x00data")
    assert run("fit").exit_code == 2


def test_a_config_that_is_not_there_is_a_usage_error(run):
    assert run("fit", "--config", "none.toml").exit_code == 2


def test_a_file_with_a_byte_order_mark_is_read_as_one_without(tmp_path):
    from bmft_cli.config import _load

    (tmp_path / "bmft.toml").write_bytes(b'\xef\xbb\xbflabel = "y"\n')
    assert _load(tmp_path / "bmft.toml") == {"label": "y"}
