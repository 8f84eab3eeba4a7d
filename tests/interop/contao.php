<?php
/*
 * Makes Contao's part of the application in console.php, whose EXTENSION this file is: the transports of the Managed Edition, messages that
 * their interfaces route, and stand-ins of its classes, as Contao itself is no Debian package. Messages are in PHP's serialize().
 *
 * Commands: contao:index URI and contao:zip ID…, which dispatch a message each. Handlers fail while there is a file `broken`.
 */

namespace Contao\CoreBundle\Messenger\Message {
    interface HighPriorityMessageInterface
    {
    }

    interface NormalPriorityMessageInterface
    {
    }

    interface LowPriorityMessageInterface
    {
    }

    /** Holds a document, in properties of its own and of another class. */
    class SearchIndexMessage implements LowPriorityMessageInterface
    {
        private function __construct(
            private readonly \Contao\CoreBundle\Search\Document $document,
            private readonly bool $index,
            private readonly bool $delete,
        ) {
        }

        public static function toIndex(\Contao\CoreBundle\Search\Document $document): self
        {
            return new self($document, true, false);
        }

        public function document(): \Contao\CoreBundle\Search\Document
        {
            return $this->document;
        }
    }
}

namespace Contao\CoreBundle\Search {
    class Document
    {
        private ?array $jsonLds = null;

        public function __construct(private string $uri, private int $statusCode, private array $headers, private string $body)
        {
        }

        public function uri(): string
        {
            return $this->uri;
        }
    }
}

namespace Contao\CoreBundle\Messenger\Transport {
    use Psr\Container\ContainerInterface;
    use Symfony\Component\Messenger\Envelope;
    use Symfony\Component\Messenger\Transport\Serialization\SerializerInterface;
    use Symfony\Component\Messenger\Transport\TransportFactoryInterface;
    use Symfony\Component\Messenger\Transport\TransportInterface;

    /** Always has a worker: the target's queue. */
    class AutoFallbackTransport implements TransportInterface
    {
        public function __construct(private ContainerInterface $transports, private string $target)
        {
        }

        public function get(): iterable
        {
            return $this->target()->get();
        }

        public function ack(Envelope $envelope): void
        {
            $this->target()->ack($envelope);
        }

        public function reject(Envelope $envelope): void
        {
            $this->target()->reject($envelope);
        }

        public function send(Envelope $envelope): Envelope
        {
            return $this->target()->send($envelope);
        }

        private function target(): TransportInterface
        {
            return $this->transports->get($this->target);
        }
    }

    class AutoFallbackTransportFactory implements TransportFactoryInterface
    {
        public function __construct(private ContainerInterface $transports)
        {
        }

        public function createTransport(string $dsn, array $options, SerializerInterface $serializer): TransportInterface
        {
            parse_str(parse_url($dsn, PHP_URL_QUERY), $query);

            return new AutoFallbackTransport($this->transports, $query['target']);
        }

        public function supports(string $dsn, array $options): bool
        {
            return str_starts_with($dsn, 'contao-auto-fallback://');
        }
    }
}

namespace App\Messenger {
    use Contao\CoreBundle\Messenger\Message\HighPriorityMessageInterface;
    use Contao\CoreBundle\Messenger\Message\SearchIndexMessage;

    class CreateAsyncZipFileMessage implements HighPriorityMessageInterface
    {
        public function __construct(public array $fileIds)
        {
        }
    }

    function handled(string $what): void
    {
        if (file_exists('broken')) {
            throw new \RuntimeException('PHP finds it broken');
        }
        file_put_contents(getenv('HANDLED'), json_encode(['by' => 'php', 'what' => $what])."\n", FILE_APPEND | LOCK_EX);
    }

    class SearchIndexMessageHandler
    {
        public function __invoke(SearchIndexMessage $message): void
        {
            handled($message->document()->uri());
        }
    }

    class CreateAsyncZipFileMessageHandler
    {
        public function __invoke(CreateAsyncZipFileMessage $message): void
        {
            handled(implode(' ', $message->fileIds));
        }
    }
}

namespace App {
    use Contao\CoreBundle\Messenger\Message;
    use Contao\CoreBundle\Messenger\Transport\AutoFallbackTransportFactory;
    use Contao\CoreBundle\Search\Document;
    use Symfony\Component\Console\Command\Command;
    use Symfony\Component\Console\Input\InputArgument;
    use Symfony\Component\Console\Input\InputInterface;
    use Symfony\Component\Console\Output\OutputInterface;
    use Symfony\Component\DependencyInjection\ContainerBuilder;
    use Symfony\Component\DependencyInjection\Reference;
    use Symfony\Component\Messenger\MessageBusInterface;

    class DispatchForContao extends Command
    {
        public function __construct(string $name, private MessageBusInterface $bus)
        {
            parent::__construct($name);
        }

        protected function configure(): void
        {
            $this->addArgument('what', InputArgument::REQUIRED | InputArgument::IS_ARRAY);
        }

        protected function execute(InputInterface $input, OutputInterface $output): int
        {
            $what = $input->getArgument('what');
            $this->bus->dispatch('contao:zip' === $this->getName()
                ? new Messenger\CreateAsyncZipFileMessage($what)
                : Message\SearchIndexMessage::toIndex(new Document($what[0], 200, ['content-type' => ['text/html']], '<p>"é" \\ 日本</p>')));

            return 0;
        }
    }

    function extend(ContainerBuilder $container): void
    {
        $queue = fn (string $name) => "doctrine://default?table_name=tl_message_queue&queue_name=$name&auto_setup=false";
        $transports = ['sync' => 'sync://', 'contao_failure' => $queue('failure')];
        $routing = [];
        foreach (['High', 'Normal', 'Low'] as $priority) {
            $name = 'contao_prio_'.strtolower($priority);
            $transports[$name] = "contao-auto-fallback://$name?target={$name}_doctrine&fallback=sync";
            $transports[$name.'_doctrine'] = $queue('prio_'.strtolower($priority));
            $routing["Contao\CoreBundle\Messenger\Message\\{$priority}PriorityMessageInterface"] = $name;
        }
        $container->loadFromExtension('framework', [
            'messenger' => ['failure_transport' => 'contao_failure', 'transports' => $transports, 'routing' => $routing],
        ]);
        $container->register(AutoFallbackTransportFactory::class)
            ->addArgument(new Reference('messenger.receiver_locator'))
            ->addTag('messenger.transport_factory');
        $container->register(Messenger\SearchIndexMessageHandler::class)->addTag('messenger.message_handler');
        $container->register(Messenger\CreateAsyncZipFileMessageHandler::class)->addTag('messenger.message_handler');
        foreach (['contao:index', 'contao:zip'] as $command) {
            $container->register($command, DispatchForContao::class)
                ->addArgument($command)
                ->addArgument(new Reference('messenger.default_bus'))
                ->addTag('console.command');
        }
    }
}
