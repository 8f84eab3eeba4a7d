<?php
/* What the Symfony application of console.php does with a message, and what the programs of benches/handlers.rs do. */

namespace App;

function handle_note(int $n, string $text, bool $fail): void
{
    if ($fail) {
        throw new \RuntimeException('PHP was told to fail');
    }
    usleep(1000 * (int) getenv('SLOW'));
    if ($file = getenv('HANDLED')) {
        $line = json_encode(['by' => 'php', 'n' => $n, 'text' => $text])."\n";
        file_put_contents($file, $line, FILE_APPEND | LOCK_EX);
    }
}
