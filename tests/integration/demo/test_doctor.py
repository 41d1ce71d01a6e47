"""`kumiai doctor` beside a running demo, whatever port it stands on."""

from tests import warm
from tests.demo_process import DemoProcess

CHECKS = ["database", "keys", "issuer", "gateway", "scanner", "slots"]


def test_the_doctor_finds_the_demo_where_it_runs(running: DemoProcess) -> None:
    for words in ([], ["--home", str(running.home)]):
        done = running.run("doctor", *words)
        assert [line.split() for line in done.stdout.splitlines()] == [["OK", name] for name in CHECKS]
        assert done.returncode == 0, done.stderr


def test_what_does_not_answer_is_named_with_its_setting(running: DemoProcess) -> None:
    done = warm.run("doctor", env={**running.environment, "KUMIAI_GATEWAY_URL": "http://127.0.0.1:9"})
    assert done.returncode == 1
    [wrong] = [line for line in done.stdout.splitlines() if line.startswith("NG")]
    assert "http://127.0.0.1:9/health/ready" in wrong
    assert "KUMIAI_GATEWAY_URL" in wrong
