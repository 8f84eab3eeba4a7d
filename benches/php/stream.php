<?php
/* `stream`: a process for many, one line for each message. */
require __DIR__.'/../../tests/interop/handler.php';

while (false !== $line = fgets(STDIN)) {
    $message = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
    try {
        App\handle_note(...$message['body']);
        $answer = ['ok' => true];
    } catch (Throwable $e) {
        $answer = ['error' => $e->getMessage()];
    }
    fwrite(STDOUT, json_encode(['id' => $message['id']] + $answer)."\n");
}
