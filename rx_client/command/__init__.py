"""The command `rxfiles`: what the client and the server can do, as verbs of a shell.

Each verb is a module with a pipeline of the client's public observables, made to be read as an example. What follows
stays as it is from version to version, so that scripts can rely on it.

Exit codes:

====  =================================================================================================================
0     everything was done; that links, devices, and existing files with `--ignore-existing` are skipped is no failure
1     failed
2     wrong usage: nothing was done
3     some files failed, others didn't; if all have failed in the same way, it is the code of that
4     not found: a file of the server's or of this computer's
5     refused: the server wants other credentials, or the user hasn't the right
6     no server: refused, unreachable, a certificate that isn't accepted, or lost for good
130   interrupted, by SIGINT (Ctrl-C) or SIGTERM; the same command goes on where it stopped
141   standard output was closed, as by `| head`
====  =================================================================================================================

What is asked for (names, contents, what `sync`, `mv` and `rm` did) goes to standard output. Progress, errors and all
else a person reads go to standard error.

With `--json` standard output has one JSON object a line, flushed with each line. More keys and events may be added;
what is not known is null. Sizes are bytes, times seconds, and `modified` is seconds since the epoch.

============  =========================================================================================================
event         keys
============  =========================================================================================================
file          name, size, etag, modified, digest: of `ls` and `stat`
started       name, total, resumed_from (bytes that are there already)
progress      name, transferred, total, bytes_per_second, seconds_left
total         as progress, of all files together, without name; moved, active, completed, failed, skipped
retrying      name, attempt, delay, error, message
waiting       seconds: how long nothing has moved
completed     name, size, etag, modified, digest
skipped       name, reason
failed        name, error, message, exit_code
watched       kind (present, ready, added, changed, removed), name, size, etag, modified, digest: of `watch`; of ready
              and removed only the first two
statistics    what `rx_client.ServerStats` has, of `top`
change        action (put, get, move, delete), name, to (of move), reason, dry_run: of `sync`, `mv` and `rm`
note          message: nothing that a script needs
error         error, message, exit_code: ends the command
interrupted   message
summary       exit_code, completed, failed, skipped, bytes (moved), seconds: always the last line
============  =========================================================================================================

`error` is the class of the failure in snake case, such as `not_found` or `connection_failed`; `shared/errors.py` has
the tree of them. Each failure is also a line on standard error.

The environment: RXFILES_SERVER in place of `--server`; RXFILES_USER and RXFILES_PASSWORD, which aren't options, since a
computer's other users can see those; RXFILES_DEBUG=1 shows the traceback of an error that isn't expected.
"""
