<?php

/*
 * Symfony's SigningSerializer around PhpSerializer, key `s3cret`: `php signing.php sign` prints a signed message, `php signing.php
 * verify` reads one from its standard input and prints its class, or why it is refused.
 */

namespace App {
    class Run
    {
        public function __construct(public string $report)
        {
        }
    }
}

namespace {
    use Symfony\Component\Messenger\Envelope;
    use Symfony\Component\Messenger\Stamp\BusNameStamp;
    use Symfony\Component\Messenger\Transport\Serialization\PhpSerializer;
    use Symfony\Component\Messenger\Transport\Serialization\SigningSerializer;

    require getenv('SYMFONY').'/Symfony/Component/Messenger/autoload.php';

    $serializer = new SigningSerializer(new PhpSerializer(), 's3cret', [App\Run::class]);
    if ('sign' === $argv[1]) {
        echo json_encode($serializer->encode(new Envelope(new App\Run('daily'), [new BusNameStamp('b')])));
        exit;
    }
    try {
        $envelope = $serializer->decode(json_decode(stream_get_contents(STDIN), true));
        echo $envelope->getMessage()::class;
    } catch (Throwable $error) {
        echo $error->getMessage();
    }
}
