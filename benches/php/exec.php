<?php
/* `exec`: a process for each message. */
require __DIR__.'/../../tests/interop/handler.php';

App\handle_note(...json_decode(file_get_contents('php://stdin'), true, flags: JSON_THROW_ON_ERROR));
