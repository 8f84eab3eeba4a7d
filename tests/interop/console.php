<?php
/*
 * A small Symfony application around the real Symfony Messenger (Debian's php-symfony-messenger and its bridges), for
 * the interoperation tests. Environment:
 *
 *   TRANSPORT_DSN, FAILURE_DSN   the transports "async" and "failed"
 *   DATABASE_URL                 the Doctrine connection "default": sqlite:////…, postgresql://…, mysql://…
 *   HANDLED                      a file that gets one line per handled message
 *   MAX_RETRIES, RETRY_DELAY     of "async" (default 3 and 1000 ms)
 *   SLOW                         how many milliseconds handling takes (default 0)
 *
 * Commands: dispatch BODY-AS-JSON [--delay=MS] [--times=N], count, and Symfony's own messenger:consume,
 * messenger:failed:retry, messenger:failed:show, messenger:setup-transports.
 */

namespace {
    error_reporting(E_ALL & ~E_DEPRECATED & ~E_USER_DEPRECATED);
    foreach (['Messenger', 'Console', 'Serializer', 'PropertyAccess', 'PropertyInfo', 'EventDispatcher'] as $component) {
        require_once "/usr/share/php/Symfony/Component/$component/autoload.php";
    }
    foreach (['Doctrine', 'Redis', 'Amqp'] as $bridge) {
        require_once "/usr/share/php/Symfony/Component/Messenger/Bridge/$bridge/autoload.php";
    }
    require_once '/usr/share/php/Doctrine/DBAL/autoload.php';
}

namespace App\Message {
    class Note
    {
        public function __construct(public int $n = 0, public string $text = '', public bool $fail = false)
        {
        }
    }
}

namespace App\Stamp {
    /** A stamp that only PHP knows. */
    class Tenant implements \Symfony\Component\Messenger\Stamp\StampInterface
    {
        public function __construct(public string $name = '')
        {
        }
    }
}

namespace {
    use App\Message\Note;
    use App\Stamp\Tenant;
    use Doctrine\DBAL\DriverManager;
    use Psr\Container\ContainerInterface;
    use Symfony\Component\Console\Application;
    use Symfony\Component\EventDispatcher\EventDispatcher;
    use Symfony\Component\Messenger\Bridge\Amqp\Transport\AmqpTransportFactory;
    use Symfony\Component\Messenger\Bridge\Doctrine\Transport\Connection;
    use Symfony\Component\Messenger\Bridge\Doctrine\Transport\DoctrineTransport;
    use Symfony\Component\Messenger\Bridge\Doctrine\Transport\PostgreSqlConnection;
    use Symfony\Component\Messenger\Bridge\Redis\Transport\RedisTransportFactory;
    use Symfony\Component\Messenger\Command\ConsumeMessagesCommand;
    use Symfony\Component\Messenger\Command\FailedMessagesRetryCommand;
    use Symfony\Component\Messenger\Command\FailedMessagesShowCommand;
    use Symfony\Component\Messenger\Command\SetupTransportsCommand;
    use Symfony\Component\Messenger\Envelope;
    use Symfony\Component\Messenger\EventListener\AddErrorDetailsStampListener;
    use Symfony\Component\Messenger\EventListener\SendFailedMessageForRetryListener;
    use Symfony\Component\Messenger\EventListener\SendFailedMessageToFailureTransportListener;
    use Symfony\Component\Messenger\EventListener\StopWorkerOnSigtermSignalListener;
    use Symfony\Component\Messenger\Handler\HandlersLocator;
    use Symfony\Component\Messenger\MessageBus;
    use Symfony\Component\Messenger\Middleware\AddBusNameStampMiddleware;
    use Symfony\Component\Messenger\Middleware\FailedMessageProcessingMiddleware;
    use Symfony\Component\Messenger\Middleware\HandleMessageMiddleware;
    use Symfony\Component\Messenger\Middleware\RejectRedeliveredMessageMiddleware;
    use Symfony\Component\Messenger\Middleware\SendMessageMiddleware;
    use Symfony\Component\Messenger\Retry\MultiplierRetryStrategy;
    use Symfony\Component\Messenger\RoutableMessageBus;
    use Symfony\Component\Messenger\Stamp\DelayStamp;
    use Symfony\Component\Messenger\Stamp\RedeliveryStamp;
    use Symfony\Component\Messenger\Transport\Sender\SendersLocator;
    use Symfony\Component\Messenger\Transport\Serialization\Serializer;
    use Symfony\Component\Serializer\Encoder\JsonEncoder;
    use Symfony\Component\Serializer\Normalizer\ArrayDenormalizer;
    use Symfony\Component\Serializer\Normalizer\DateTimeNormalizer;
    use Symfony\Component\Serializer\Normalizer\ObjectNormalizer;
    use Symfony\Contracts\Service\ServiceLocatorTrait;
    use Symfony\Contracts\Service\ServiceProviderInterface;

    function locator(array $services): ServiceProviderInterface
    {
        $factories = array_map(fn ($service) => fn () => $service, $services);

        return new class($factories) implements ServiceProviderInterface {
            use ServiceLocatorTrait;
        };
    }

    function transport(string $dsn, Serializer $serializer)
    {
        if (str_starts_with($dsn, 'doctrine://')) {
            $database = DriverManager::getConnection(['url' => getenv('DATABASE_URL')]);
            $configuration = Connection::buildConfiguration($dsn);
            $isPostgres = 'postgresql' === $database->getDatabasePlatform()->getName();
            $connection = $isPostgres
                ? new PostgreSqlConnection($configuration, $database)
                : new Connection($configuration, $database);

            return new DoctrineTransport($connection, $serializer);
        }
        $factory = str_starts_with($dsn, 'amqp') ? new AmqpTransportFactory() : new RedisTransportFactory();

        // On Redis each worker needs a name of its own; minutely tells its workers their slot.
        $named = getenv('MINUTELY_SLOT') && str_starts_with($dsn, 'redis');
        $options = $named ? ['consumer' => getenv('MINUTELY_SLOT')] : [];

        return $factory->createTransport($dsn, $options, $serializer);
    }

    // 5.4's Doctrine transport writes the process's local time; everybody's is UTC here.
    date_default_timezone_set('UTC');

    $types = new Symfony\Component\PropertyInfo\Extractor\ReflectionExtractor();
    $serializer = new Serializer(new Symfony\Component\Serializer\Serializer(
        [new DateTimeNormalizer(), new ArrayDenormalizer(), new ObjectNormalizer(null, null, null, $types)],
        [new JsonEncoder()],
    ));
    $async = transport(getenv('TRANSPORT_DSN'), $serializer);
    $transports = ['async' => $async];
    if (getenv('FAILURE_DSN')) {
        $transports['failed'] = transport(getenv('FAILURE_DSN'), $serializer);
    }

    $handlers = new HandlersLocator([Note::class => [function (Note $note) {
        if ($note->fail) {
            throw new RuntimeException('PHP was told to fail');
        }
        usleep(1000 * (int) getenv('SLOW'));
        if ($file = getenv('HANDLED')) {
            file_put_contents($file, json_encode(['by' => 'php', 'n' => $note->n, 'text' => $note->text])."\n", FILE_APPEND | LOCK_EX);
        }
    }]]);
    $bus = new MessageBus([
        new AddBusNameStampMiddleware('messenger.bus.default'),
        new RejectRedeliveredMessageMiddleware(),
        new FailedMessageProcessingMiddleware(),
        new SendMessageMiddleware(new SendersLocator([Note::class => ['async']], locator($transports))),
        new HandleMessageMiddleware($handlers),
    ]);

    $events = new EventDispatcher();
    $strategy = new MultiplierRetryStrategy((int) (getenv('MAX_RETRIES') ?: 3), (int) (getenv('RETRY_DELAY') ?: 1000));
    $events->addSubscriber(new AddErrorDetailsStampListener());
    $events->addSubscriber(new SendFailedMessageForRetryListener(locator($transports), locator(['async' => $strategy]), null, $events));
    $events->addSubscriber(new StopWorkerOnSigtermSignalListener());
    if (isset($transports['failed'])) {
        $events->addSubscriber(new SendFailedMessageToFailureTransportListener(locator(['async' => $transports['failed']])));
    }

    $command = $argv[1] ?? '';
    if ('count' === $command) {
        echo $async->getMessageCount(), "\n";
    } elseif ('dispatch' === $command) {
        $body = json_decode($argv[2], true, 512, JSON_THROW_ON_ERROR);
        $options = [];
        foreach (array_slice($argv, 3) as $argument) {
            [$name, $value] = explode('=', ltrim($argument, '-'));
            $options[$name] = (int) $value;
        }
        for ($n = 0; $n < ($options['times'] ?? 1); ++$n) {
            $stamps = [new Tenant('tenant '.$n)];
            if (isset($options['delay'])) {
                $stamps[] = new DelayStamp($options['delay']);
            }
            $note = new Note(...$body);
            $note->n += $n;
            $bus->dispatch(new Envelope($note, $stamps));
        }
    } else {
        $application = new Application();
        $locator = locator($transports);
        $buses = new RoutableMessageBus(locator(['messenger.bus.default' => $bus]), $bus);
        $application->addCommands([
            new ConsumeMessagesCommand($buses, $locator, $events, null, array_keys($transports), null, ['messenger.bus.default']),
            new SetupTransportsCommand($locator, array_keys($transports)),
        ]);
        if (isset($transports['failed'])) {
            $failed = locator(['failed' => $transports['failed']]);
            $application->addCommands([
                new FailedMessagesRetryCommand('failed', $failed, $buses, $events),
                new FailedMessagesShowCommand('failed', $failed),
            ]);
        }
        $application->run();
    }
}
