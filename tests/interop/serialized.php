<?php
/*
 * What the real PHP makes of serialized envelopes, for the tests of minutely's decoder. SYMFONY is the folder that Symfony's
 * packages are in.
 *
 *   generate N SEED   N envelopes as lines of JSON: body (base64), type, message (what Symfony's JSON would say), refused (JSON
 *                     cannot hold the message)
 *   check             lines of JSON from standard input: before and after (bodies, base64). Exits with 1 and says why if the
 *                     second is not byte for byte what PHP writes after the same change of stamps: no DelayStamp, one more
 *                     BusNameStamp, one more ErrorDetailsStamp, and a SentToFailureTransportStamp.
 */

namespace {
    error_reporting(E_ALL & ~E_DEPRECATED & ~E_USER_DEPRECATED);
    date_default_timezone_set('UTC');
    $root = realpath(getenv('SYMFONY') ?: '/usr/share/php');
    spl_autoload_register(function (string $class) use ($root) {
        $file = $root.'/'.strtr($class, '\\', '/').'.php';
        if (is_file($file)) {
            require $file;
        }
    });
}

namespace App {
    enum Suit: string
    {
        case Hearts = 'H';
        case Spades = 'S';
    }

    class Base
    {
        private mixed $hidden = null;
        protected mixed $shared = null;

        public function hide(mixed $value): void
        {
            $this->hidden = $value;
        }
    }

    class Message extends Base
    {
        private mixed $hidden = 'own';
        public mixed $open = null;

        public function __construct(private mixed $a = null, protected mixed $b = null, public readonly mixed $c = null)
        {
        }

        public function share(mixed &$value): void
        {
            $this->open = &$value;
            $this->shared = &$value;
        }
    }

    /** With a format of its own, by names and by numbers. */
    class Listed
    {
        public array $data = [];

        public function __serialize(): array
        {
            return $this->data;
        }

        public function __unserialize(array $data): void
        {
            $this->data = $data;
        }
    }

    class Tenant implements \Symfony\Component\Messenger\Stamp\StampInterface
    {
        public function __construct(private mixed $value = null)
        {
        }
    }

    class Random
    {
        private array $objects = [];

        public function message(): object
        {
            $this->objects = [];
            $message = 0 === mt_rand(0, 9) ? $this->listed(1) : new Message($this->value(4), $this->value(3), $this->value(2));
            if ($message instanceof Message) {
                $message->hide($this->value(1));
                if (mt_rand(0, 1)) {
                    $value = $this->value(2);
                    $message->share($value);
                }
            }

            return $message;
        }

        public function stamp(): object
        {
            return new Tenant($this->value(2));
        }

        private function value(int $depth): mixed
        {
            return match (mt_rand(0, $depth > 0 ? 14 : 8)) {
                0 => null,
                1 => (bool) mt_rand(0, 1),
                2 => [0, -1, PHP_INT_MAX, PHP_INT_MIN, mt_rand()][mt_rand(0, 4)],
                3 => [0.0, -0.0, 0.1, 1e25, -1.5e-300, mt_rand() / 7, PHP_FLOAT_MAX, PHP_FLOAT_MIN][mt_rand(0, 7)],
                4, 5 => $this->text(),
                6 => Suit::cases()[mt_rand(0, 1)],
                7 => $this->date(),
                8 => [new \DateTimeZone('Europe/Berlin'), new \DateInterval('P1Y2M3DT4H5M6S')][mt_rand(0, 1)],
                9, 10 => $this->array($depth),
                11 => $this->objects ? $this->objects[array_rand($this->objects)] : null,
                12 => $this->listed($depth),
                13 => $this->twice($depth),
                14 => $this->objects[] = new Message($this->value($depth - 1), $this->value($depth - 1), $this->value($depth - 1)),
            };
        }

        private function text(): string
        {
            return match (mt_rand(0, 4)) {
                0 => '',
                1 => "é \"x\" \\ / '日本' 😀\n\t\0\x7f",
                2 => random_bytes_of(mt_rand(1, 12)),
                3 => 'r:1;R:2;}"s:3:"',
                4 => str_repeat('ab', mt_rand(0, 40)),
            };
        }

        private function date(): \DateTimeInterface
        {
            $zone = new \DateTimeZone(['UTC', 'Europe/Berlin', 'America/St_Johns', '+05:45', 'EST'][mt_rand(0, 4)]);
            $date = (new \DateTimeImmutable('@'.mt_rand(-2000000000, 2000000000)))->setTimezone($zone);

            return mt_rand(0, 1) ? $date : \DateTime::createFromImmutable($date);
        }

        private function array(int $depth): array
        {
            $array = [];
            $kind = mt_rand(0, 2);
            for ($n = mt_rand(0, 4); $n > 0; --$n) {
                match ($kind) {
                    0 => $array[] = $this->value($depth - 1),
                    1 => $array[mt_rand(-3, 9)] = $this->value($depth - 1),
                    2 => $array['k'.mt_rand(0, 9).'"é'] = $this->value($depth - 1),
                };
            }

            return $array;
        }

        private function listed(int $depth): Listed
        {
            $listed = new Listed();
            $listed->data = $this->array($depth);

            return $this->objects[] = $listed;
        }

        private function twice(int $depth): array
        {
            $value = $this->value($depth - 1);

            return ['a' => &$value, 'b' => &$value, 'c' => $this->value(0)];
        }
    }

    function random_bytes_of(int $length): string
    {
        $bytes = '';
        while ($length-- > 0) {
            $bytes .= chr(mt_rand(0, 255));
        }

        return $bytes;
    }

    /** What minutely's documentation says, from the living object. */
    function shown(mixed $value): mixed
    {
        if (is_string($value)) {
            return preg_match('//u', $value) ? $value : 'data:application/octet-stream;base64,'.base64_encode($value);
        }
        if (is_array($value)) {
            $shown = array_map(shown(...), $value);

            return array_is_list($value) ? $shown : (object) $shown;
        }
        if (!is_object($value)) {
            return $value;
        }
        if ($value instanceof \UnitEnum) {
            return $value->name;
        }
        if ($value instanceof \DateTimeInterface) {
            return $value->format(\DATE_RFC3339);
        }
        if ($value instanceof \DateTimeZone) {
            return $value->getName();
        }
        if ($value instanceof \DateInterval) {
            return $value->format('%rP%yY%mM%dDT%hH%iM%sS');
        }
        if ($value instanceof Listed) {
            return (object) array_map(shown(...), $value->data);
        }
        $shown = new \stdClass();
        for ($class = new \ReflectionClass($value); $class; $class = $class->getParentClass()) {
            foreach ($class->getProperties() as $property) {
                $name = $property->getName();
                if (!$property->isStatic() && !property_exists($shown, $name)) {
                    $shown->$name = shown($property->getValue($value));
                }
            }
        }

        return $shown;
    }
}

namespace {
    use App\Random;
    use Symfony\Component\Messenger\Envelope;
    use Symfony\Component\Messenger\Stamp\BusNameStamp;
    use Symfony\Component\Messenger\Stamp\DelayStamp;
    use Symfony\Component\Messenger\Stamp\ErrorDetailsStamp;
    use Symfony\Component\Messenger\Stamp\SentToFailureTransportStamp;
    use Symfony\Component\Messenger\Transport\Serialization\PhpSerializer;

    $serializer = new PhpSerializer();
    if ('generate' === $argv[1]) {
        mt_srand((int) $argv[3]);
        $random = new Random();
        for ($n = 0; $n < $argv[2]; ++$n) {
            $message = $random->message();
            $stamps = [];
            foreach ([$random->stamp(...), fn () => new DelayStamp(mt_rand(0, 999)), fn () => new BusNameStamp('b'), $random->stamp(...)] as $stamp) {
                if (mt_rand(0, 1)) {
                    $stamps[] = $stamp();
                }
            }
            $body = $serializer->encode(new Envelope($message, $stamps))['body'];
            // As PHP reads it again: the text does not say which of the two hours a time is in when clocks are set back.
            $shown = json_encode(App\shown(unserialize(serialize($message))), JSON_PRESERVE_ZERO_FRACTION | JSON_THROW_ON_ERROR);
            echo json_encode(['body' => base64_encode($body), 'type' => $message::class, 'message' => $shown]), "\n";
        }
        exit(0);
    }
    for ($n = 0; false !== $line = fgets(STDIN); ++$n) {
        $line = json_decode($line, true, 512, JSON_THROW_ON_ERROR);
        $before = $serializer->decode(['body' => base64_decode($line['before'])]);
        $expected = $before->withoutAll(DelayStamp::class)->with(
            new BusNameStamp('another'),
            new ErrorDetailsStamp('E', 7, "é \"\\ \0", null),
            new SentToFailureTransportStamp('async'),
        );
        $expected = $serializer->encode($expected)['body'];
        $after = base64_decode($line['after']);
        if ($expected !== $after) {
            fwrite(STDERR, "line $n\nPHP:  $expected\nhere: $after\n");
            exit(1);
        }
        // And PHP reads what it is given.
        $serializer->decode(['body' => $after]);
    }
    echo $n, "\n";
}
