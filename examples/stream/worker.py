#!/usr/bin/env python3
# stream: [python3, bin/worker.py]
import json
import os
import sys

answers = os.fdopen(os.dup(1), "w")    # standard output is for answers
os.dup2(2, 1)                          # what is printed goes to the log


def handle(kind, message):
    if "name" not in message:
        raise ValueError("the message has no name")
    print(f"greeting {message['name']}", flush=True)
    return f"hello {message['name']}"


for line in sys.stdin.buffer:
    message = {}
    try:
        message = json.loads(line)
        answer = {"ok": True, "result": handle(message["type"], message["body"])}
    except ValueError as error:
        answer = {"error": str(error), "class": type(error).__name__, "retry": False}
    except Exception as error:    # a line that cannot be read, because it is nested too deeply, will not be later
        answer = {"error": str(error), "class": type(error).__name__, "retry": bool(message)}
    print(json.dumps({"id": message.get("id"), **answer}), file=answers, flush=True)
