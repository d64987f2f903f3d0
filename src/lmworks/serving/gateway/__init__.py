"""One OpenAI-compatible door to many back ends: who may ask, how much, and who answers.

In: `gateway.yaml` (back ends, the models that clients see, prices) and keys made on the command
line. Out: an ASGI application whose clients need no change. A request passes, in this order:

| step | file |
|---|---|
| whose key is it, and may it use the model | `keys` |
| has the same, or nearly the same, been answered before | `cache`, `semantic_cache` |
| is it within rates, quotas and budget: reserved before, settled after | `limits`, `ledger` |
| which back end, and which next if that one fails | `routing`, `backends` |
| bytes there and back, as they come; what was used is read on the way | `upstream`, `relay` |
| what stays: usage, request log, audit log, without secrets | `store`, `audit`, `redaction` |

Of the 88 systems, the API gateway lives here.
"""
