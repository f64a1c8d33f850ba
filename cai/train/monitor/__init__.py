"""The reward-hacking monitor: what goes wrong while a policy is trained on a proxy reward, said from files alone.

`files.read_run` reads a run, `looking.look` measures and judges it, `files.write_report` and `page.render_report` show
what was found.
"""
