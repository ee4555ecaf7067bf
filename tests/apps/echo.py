"""TCP echo for many connections at once: every byte comes back, the end too.

usage: echo.py PORT        prints `ready`, then `open N` and `closed N ok|error` per connection
"""

import asyncio
import itertools
import resource
import sys

numbers = itertools.count(1)


def say(text):
    print(text, flush=True)


async def serve(reader, writer):
    number = next(numbers)
    say(f"open {number}")
    outcome = "ok"
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        outcome = "error"
    finally:
        say(f"closed {number} {outcome}")
        writer.close()


async def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    say("ready")
    await server.serve_forever()


asyncio.run(main())
