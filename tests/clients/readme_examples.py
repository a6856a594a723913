"""The README's Python examples against a running node, as they stand but for the port."""

import pathlib
import re
import sys

port = sys.argv[1]
readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
examples = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
assert len(examples) >= 6, f"the README has {len(examples)} Python examples"
names = {}
for number, example in enumerate(examples, 1):
    exec(compile(example.replace("6379", port), f"README example {number}", "exec"), names)

# What the examples leave to the eye.
cmd = names["cmd"]
assert cmd("GET", "order:8812") == "paid"
assert cmd("EXISTS", "lock:order:8812", "account:2") == 1, "one was released, the other handed over"
assert cmd("LOCKS", "INFO", "account:2")["holders"][0][0] == "ann"
assert cmd("QLEN", "mail") == 2
for payload in ["resize:7", "urgent", "later", "step-1", "step-2"]:
    assert cmd("GET", f"result:{payload}") == "done", payload
assert cmd("QLEN", "jobs", "ALL") == 0 and cmd("QLEN", "inspection") == 1
info = cmd("QINFO", "jobs")
assert (info["pushed"], info["acked"], info["moved"], info["blocked_clients"]) == (6, 5, 1, 0)
with names["Lock"]("lock:renewed", 300) as lock:
    lock.done.wait(1)
    assert lock.is_held(), "it was renewed"
    first = lock.token
with names["Lock"]("lock:renewed", 300) as lock:
    assert lock.token > first
    cmd("LOCKS", "KILL", "lock:renewed")
    lock.done.wait(1)
    assert not lock.is_held(), "it was lost"
print(f"README, Python: {len(examples)} examples: ok")
