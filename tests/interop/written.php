<?php

/*
 * Reads a body that `serializer: php` has written, with Symfony's PhpSerializer: what is in it as JSON, and whether PHP would write the
 * same.
 */

namespace App {
    enum Status: string
    {
        case Open = 'open';
        case Done = 'done';
    }

    class Address
    {
        public function __construct(private string $street, protected ?string $city = null)
        {
        }
    }

    class Base
    {
        private int $id = 0;
    }

    final class Order extends Base
    {
        public function __construct(
            public readonly string $to,
            private int $count,
            protected float $price,
            private bool $paid,
            private array $tags,
            private \DateTimeImmutable $at,
            private ?Address $address,
            private Status $status,
            private array $addresses,
            private ?string $none,
        ) {
        }
    }
}

namespace {
    use Symfony\Component\Messenger\Transport\Serialization\PhpSerializer;

    require (getenv('SYMFONY') ?: '/usr/share/php').'/Symfony/Component/Messenger/autoload.php';

    function describe(mixed $value): mixed
    {
        return match (true) {
            $value instanceof DateTimeInterface => $value->format(DATE_ATOM),
            $value instanceof UnitEnum => $value::class.'::'.$value->name,
            is_object($value) => ['class' => $value::class] + array_map(describe(...), properties($value)),
            is_array($value) => array_map(describe(...), $value),
            is_float($value) => "float $value",
            default => $value,
        };
    }

    function properties(object $object): array
    {
        $properties = [];
        for ($class = new ReflectionClass($object); $class; $class = $class->getParentClass()) {
            foreach ($class->getProperties() as $property) {
                $properties[$property->getName()] = $property->getValue($object);
            }
        }
        return $properties;
    }

    $body = stream_get_contents(STDIN);
    $serializer = new PhpSerializer();
    $envelope = $serializer->decode(['body' => $body]);
    echo json_encode([
        'message' => describe($envelope->getMessage()),
        'stamps' => array_keys($envelope->all()),
        'same' => $serializer->encode($envelope)['body'] === $body,
    ]);
}
