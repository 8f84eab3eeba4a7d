#!/usr/bin/env php
<?php // stream: [php, bin/worker.php]
ini_set('display_errors', 'stderr');    // standard output is for answers; what is echoed goes to the log
ob_start(static function (string $text): string { fwrite(STDERR, $text); return ''; }, 1);

function handle(string $type, array $message): mixed
{
    if (!isset($message['name'])) {
        throw new InvalidArgumentException('the message has no name');
    }
    echo "greeting {$message['name']}\n";
    return "hello {$message['name']}";
}

while (false !== $line = fgets(STDIN)) {
    $message = null;
    try {
        $message = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
        $answer = ['ok' => true, 'result' => handle($message['type'], $message['body'])];
    } catch (InvalidArgumentException $e) {
        $answer = ['error' => $e->getMessage(), 'class' => $e::class, 'retry' => false];
    } catch (Throwable $e) {    // a line that cannot be read, because it is nested too deeply, will not be later
        $answer = ['error' => $e->getMessage(), 'class' => $e::class, 'retry' => $message !== null];
    }
    fwrite(STDOUT, json_encode(['id' => $message['id'] ?? null] + $answer, JSON_INVALID_UTF8_SUBSTITUTE) . "\n");
}
