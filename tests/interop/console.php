<?php
/*
 * A small Symfony application for the interoperation tests: the real FrameworkBundle, and by it the real Symfony Messenger
 * with its default middleware and listeners, from Debian's packages. Environment:
 *
 *   SYMFONY                      the folder that the packages are in, as /usr/share/php
 *   CACHE_DIR                    where the container is kept, for all runs of one version
 *   TRANSPORT_DSN, FAILURE_DSN   the transports "async" and "failed"
 *   DATABASE_URL                 the Doctrine connection "default": sqlite:////…, postgresql://…, mysql://…
 *   HANDLED                      a file that gets one line per handled message
 *   MAX_RETRIES, RETRY_DELAY     of "async"
 *   SERIALIZER                   that of the messages (default messenger.transport.symfony_serializer)
 *   SLOW                         how many milliseconds handling takes (default 0)
 *   EXTENSION                    a file with more of the application: classes, and a function App\extend(ContainerBuilder)
 *
 * Commands: dispatch BODY-AS-JSON [--delay=MS] [--times=N], count, versions, and Symfony's own messenger:*.
 */

namespace {
    error_reporting(E_ALL & ~E_DEPRECATED & ~E_USER_DEPRECATED);
    // 5.4's Doctrine transport writes the process's local time; everybody's is UTC here.
    date_default_timezone_set('UTC');

    define('SYMFONY', realpath(getenv('SYMFONY') ?: '/usr/share/php'));
    // First: some of the packages name others by their absolute path.
    spl_autoload_register(function (string $class) {
        $file = SYMFONY.'/'.strtr($class, '\\', '/').'.php';
        if (is_file($file)) {
            require $file;
        }
    });
    set_include_path(SYMFONY);
    require_once SYMFONY.'/Symfony/Bundle/FrameworkBundle/autoload.php';
    foreach (['Messenger', 'Console', 'Serializer', 'PropertyAccess', 'PropertyInfo'] as $component) {
        require_once SYMFONY."/Symfony/Component/$component/autoload.php";
    }
    require_once __DIR__.'/handler.php';
    // What a newer Symfony expects of a newer PHP.
    array_map(fn ($file) => require_once $file, glob(SYMFONY.'/Symfony/Polyfill/Php*/autoload.php'));
}

namespace Composer {
    /** FrameworkBundle asks Composer whether what is there is there for development alone. */
    class InstalledVersions
    {
        public static function isInstalled(string $package, bool $includeDevRequirements = true): bool
        {
            return false;
        }
    }
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

namespace App {
    use App\Message\Note;
    use App\Stamp\Tenant;
    use Doctrine\DBAL\Connection;
    use Doctrine\DBAL\DriverManager;
    use Doctrine\DBAL\Tools\DsnParser;
    use Doctrine\Persistence\ConnectionRegistry;
    use Symfony\Bundle\FrameworkBundle\FrameworkBundle;
    use Symfony\Component\Config\Loader\LoaderInterface;
    use Symfony\Component\Console\Command\Command;
    use Symfony\Component\Console\Input\InputArgument;
    use Symfony\Component\Console\Input\InputInterface;
    use Symfony\Component\Console\Input\InputOption;
    use Symfony\Component\Console\Output\OutputInterface;
    use Symfony\Component\DependencyInjection\ContainerBuilder;
    use Symfony\Component\DependencyInjection\Reference;
    use Symfony\Component\HttpKernel\Kernel as BaseKernel;
    use Symfony\Component\Messenger\Bridge\Doctrine\Transport\DoctrineTransportFactory;
    use Symfony\Component\Messenger\Envelope;
    use Symfony\Component\Messenger\MessageBusInterface;
    use Symfony\Component\Messenger\Stamp\DelayStamp;

    function serializer(): string
    {
        return getenv('SERIALIZER') ?: 'messenger.transport.symfony_serializer';
    }

    function extension(): ?string
    {
        return getenv('EXTENSION') ?: null;
    }

    class NoteHandler
    {
        public function __invoke(Note $note): void
        {
            handle_note($note->n, $note->text, $note->fail);
        }
    }

    /** What DoctrineBundle is for the Doctrine transport. */
    class Connections implements ConnectionRegistry
    {
        private ?Connection $connection = null;

        public function getDefaultConnectionName(): string
        {
            return 'default';
        }

        public function getConnection($name = null): object
        {
            return $this->connection ??= DriverManager::getConnection($this->parameters(getenv('DATABASE_URL')));
        }

        public function getConnections(): array
        {
            return ['default' => $this->getConnection()];
        }

        public function getConnectionNames(): array
        {
            return ['default' => 'default'];
        }

        private function parameters(string $url): array
        {
            $drivers = ['mysql' => 'pdo_mysql', 'postgresql' => 'pdo_pgsql', 'sqlite' => 'pdo_sqlite'];

            return class_exists(DsnParser::class) ? (new DsnParser($drivers))->parse($url) : ['url' => $url];
        }
    }

    class Dispatch extends Command
    {
        public function __construct(private MessageBusInterface $bus)
        {
            parent::__construct('dispatch');
        }

        protected function configure(): void
        {
            $this->addArgument('body', InputArgument::REQUIRED)
                ->addOption('delay', null, InputOption::VALUE_REQUIRED)
                ->addOption('times', null, InputOption::VALUE_REQUIRED, '', 1);
        }

        protected function execute(InputInterface $input, OutputInterface $output): int
        {
            $body = json_decode($input->getArgument('body'), true, 512, JSON_THROW_ON_ERROR);
            for ($n = 0; $n < $input->getOption('times'); ++$n) {
                $stamps = [new Tenant('tenant '.$n)];
                if (null !== $delay = $input->getOption('delay')) {
                    $stamps[] = new DelayStamp((int) $delay);
                }
                $note = new Note(...$body);
                $note->n += $n;
                $this->bus->dispatch(new Envelope($note, $stamps));
            }

            return 0;
        }
    }

    class Count extends Command
    {
        public function __construct(private object $transport)
        {
            parent::__construct('count');
        }

        protected function execute(InputInterface $input, OutputInterface $output): int
        {
            $output->writeln((string) $this->transport->getMessageCount());

            return 0;
        }
    }

    /** Symfony's, and the files of Symfony, Doctrine and PSR that come from elsewhere than they are meant to. */
    class Versions extends Command
    {
        public function __construct()
        {
            parent::__construct('versions');
        }

        protected function execute(InputInterface $input, OutputInterface $output): int
        {
            $output->writeln(BaseKernel::VERSION);
            foreach (get_included_files() as $file) {
                $ours = str_starts_with($file, __DIR__) || str_starts_with($file, getenv('CACHE_DIR'));
                if (!$ours && !str_starts_with($file, SYMFONY) && 'autoload.php' !== basename($file)) {
                    $output->writeln($file);
                }
            }

            return 0;
        }
    }

    class Kernel extends BaseKernel
    {
        public function registerBundles(): iterable
        {
            return [new FrameworkBundle()];
        }

        public function getProjectDir(): string
        {
            return __DIR__;
        }

        public function getCacheDir(): string
        {
            // For each version of Symfony and of this file.
            return getenv('CACHE_DIR').'/symfony-'.self::VERSION.'-'.md5(serializer().md5_file(__FILE__).(extension() ? md5_file(extension()) : ''));
        }

        public function getLogDir(): string
        {
            return $this->getCacheDir();
        }

        public function registerContainerConfiguration(LoaderInterface $loader): void
        {
            $loader->load(function (ContainerBuilder $container) {
                $container->loadFromExtension('framework', [
                    'secret' => 'secret',
                    'http_method_override' => false,
                    'serializer' => ['enabled' => true],
                    'messenger' => [
                        'failure_transport' => 'failed',
                        'serializer' => ['default_serializer' => serializer()],
                        'transports' => [
                            'async' => [
                                'dsn' => '%env(TRANSPORT_DSN)%',
                                'retry_strategy' => [
                                    'max_retries' => '%env(int:MAX_RETRIES)%',
                                    'delay' => '%env(int:RETRY_DELAY)%',
                                ],
                            ],
                            'failed' => '%env(FAILURE_DSN)%',
                        ],
                        'routing' => [Note::class => 'async'],
                    ],
                ]);
                $container->register(NoteHandler::class)->addTag('messenger.message_handler');
                $container->register(Connections::class);
                $container->register(DoctrineTransportFactory::class)
                    ->addArgument(new Reference(Connections::class))
                    ->addTag('messenger.transport_factory');
                $container->register(Dispatch::class)
                    ->addArgument(new Reference('messenger.default_bus'))
                    ->addTag('console.command');
                $container->register(Count::class)
                    ->addArgument(new Reference('messenger.transport.async'))
                    ->addTag('console.command');
                $container->register(Versions::class)->addTag('console.command');
                if (extension()) {
                    extend($container);
                }
            });
        }
    }
}

namespace {
    if (App\extension()) {
        require App\extension();
    }
    // On Redis each worker needs a name of its own; minutely tells its workers their slot.
    $dsn = getenv('TRANSPORT_DSN');
    if (getenv('MINUTELY_SLOT') && str_starts_with($dsn, 'redis')) {
        $_SERVER['TRANSPORT_DSN'] = $dsn.(str_contains($dsn, '?') ? '&' : '?').'consumer='.getenv('MINUTELY_SLOT');
    }
    (new Symfony\Bundle\FrameworkBundle\Console\Application(new App\Kernel('prod', false)))->run();
}
