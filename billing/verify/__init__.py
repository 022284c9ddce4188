"""`verify`: the promises of the ledger, checked on live data; each finding names the row that is wrong.

`report` is what comes out. `book` and `prices` ask Postgres, in one `snapshot`; `hot_store` compares Redis with the
book while traffic moves both; `run` puts them in order.
"""

from billing.verify.report import PROMISES, Check, Finding, Report, Tell
from billing.verify.run import verify

__all__ = ["PROMISES", "Check", "Finding", "Report", "Tell", "verify"]
