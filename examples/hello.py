"""The plan of hello.yaml in Python. Both files describe the same plan."""

from __future__ import annotations

import sys

from longshore.orchestration import Client, Param, Plan


def hello() -> Plan:
    plan = Plan(
        "hello",
        params={
            "folder": Param(type="string", pattern="/.*", description="The folder of the files"),
            "greeting": Param(type="string", default="hello", enum=["hello", "ahoy"]),
        },
    )
    text = plan.step(
        "text", "file.deploy.execute", path="{{ params.folder }}/text", content="{{ params.greeting }}, world\n"
    )
    upper = plan.step(
        "upper", "command.shell.execute", command="tr a-z A-Z < {{ params.folder }}/text", changes=False
    ).after(text)
    count = plan.step(
        "count", "command.exec.execute", argv=["wc", "-c", "{{ steps.text.data.path }}"], changes=False
    ).after(text)
    result = plan.step(
        "result",
        "file.deploy.execute",
        path="{{ params.folder }}/result",
        content="{{ steps.upper.data.stdout }}{{ steps.count.data.stdout }}",
    ).after(upper, count)
    plan.step(
        "check", "command.exec.execute", argv=["grep", "-q", "WORLD", "{{ params.folder }}/result"], changes=False
    ).after(result)
    return plan


if __name__ == "__main__":
    run = Client().start(hello(), {"folder": sys.argv[1]})
    report = run.wait(timeout=60)
    print(report.state, report.summary)
