"""A mail server for tests: `python3 smtp_server.py FOLDER [CERTIFICATE KEY]`.

Writes its port into FOLDER/port and each mail as a line of JSON into FOLDER/mails. Recipients say what happens: `busy@` is refused
for now, as long as there is no FOLDER/free, `nobody@` for good, and at `slow@` the server stops answering. With a certificate it wants STARTTLS and a login:
user `ada`, password `p@ss/word`. With FOLDER/no-quit it does not answer QUIT, and with FOLDER/repeat it repeats the AUTH that it refuses.
With FOLDER/confused it answers DATA with 250, and takes what follows for commands.
"""

import asyncio
import base64
import email
import email.policy
import json
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

folder = sys.argv[1]


def has(name):
    return os.path.exists(os.path.join(folder, name))


class Server(SMTP):
    async def smtp_QUIT(self, arg):
        if has("no-quit"):
            await asyncio.sleep(600)
        await super().smtp_QUIT(arg)

    async def smtp_DATA(self, arg):
        if has("confused"):
            await self.push("250 OK")
        else:
            await super().smtp_DATA(arg)

    async def smtp_AUTH(self, arg):
        if has("repeat"):
            plain = base64.b64decode(arg.split()[1]).decode().replace("\0", " ")
            await self.push(f"535-5.7.8 cannot AUTH {arg}\r\n535 5.7.8 which is{plain}")
        else:
            await super().smtp_AUTH(arg)


class Sink:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("busy@") and not has("free"):
            return "451 4.3.0 try again later"
        if address.startswith("nobody@"):
            return "550 5.1.1 no such user"
        if address.startswith("slow@"):
            await asyncio.sleep(600)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        parts = [
            {
                "type": part.get_content_type(),
                "disposition": part.get_content_disposition(),
                "name": part.get_filename(),
                "id": part["Content-ID"],
                "text": part.get_payload(decode=True).decode(part.get_content_charset() or "latin-1"),
            }
            for part in mail.walk()
            if not part.is_multipart()
        ]
        kinds = [part.get_content_type() for part in mail.walk() if part.is_multipart()]
        line = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": {name: str(value) for name, value in mail.items()},
            "multipart": kinds,
            "parts": parts,
            "user": session.auth_data.login.decode() if session.auth_data else None,
            "tls": session.ssl is not None,
            "peer": session.peer[0],
        }
        with open(os.path.join(folder, "mails"), "a") as mails:
            mails.write(json.dumps(line) + "\n")
        return "250 OK"


def login(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"ada", b"p@ss/word")
    return AuthResult(success=good, handled=False, auth_data=data)


def smtp():
    if len(sys.argv) == 2:
        return Server(Sink(), hostname="test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    return Server(
        Sink(), hostname="test", tls_context=context, require_starttls=True, authenticator=login, auth_required=True
    )


async def main():
    server = await asyncio.get_running_loop().create_server(smtp, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with open(os.path.join(folder, "port.new"), "w") as file:
        file.write(str(port))
    os.rename(os.path.join(folder, "port.new"), os.path.join(folder, "port"))
    await server.serve_forever()


asyncio.run(main())
