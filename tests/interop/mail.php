<?php

/*
 * Writes what Symfony's mailer would put into a queue, with PhpSerializer: `php mail.php KIND`. KIND is email, raw or file.
 */

use Symfony\Component\Mailer\Envelope as MailEnvelope;
use Symfony\Component\Mailer\Messenger\SendEmailMessage;
use Symfony\Component\Messenger\Envelope;
use Symfony\Component\Messenger\Transport\Serialization\PhpSerializer;
use Symfony\Component\Mime\Address;
use Symfony\Component\Mime\Email;
use Symfony\Component\Mime\RawMessage;

$symfony = getenv('SYMFONY') ?: '/usr/share/php';
foreach (['Messenger', 'Mailer', 'Mime'] as $component) {
    require "$symfony/Symfony/Component/$component/autoload.php";
}

$email = (new Email())
    ->from(new Address('shop@example.com', 'Shöp'))
    ->to('ada@example.com', new Address('bob@example.com', 'Bob'))
    ->cc('c@example.com')
    ->bcc('hidden@example.com')
    ->replyTo('answers@example.com')
    ->returnPath('bounces@example.com')
    ->subject('Grüße aus dem Shop')
    ->text("Hällo\n")
    ->html('<p>Hällo <img src="cid:logo.png"></p>')
    ->priority(Email::PRIORITY_HIGH)
    ->attach('content of a file', 'ä.txt', 'text/plain')
    ->embed("\x89PNG\xff\x00", 'logo.png', 'image/png');
$email->getHeaders()->addTextHeader('X-Custom', 'välue');
$envelope = null;
switch ($argv[1]) {
    case 'raw':
        $email = new RawMessage("Subject: raw\r\n\r\nas it is\r\n");
        $envelope = new MailEnvelope(new Address('s@example.com'), [new Address('r@example.com')]);
        break;
    case 'file':
        $email->attachFromPath($argv[2], 'file.txt', 'text/plain');
        break;
}
echo (new PhpSerializer())->encode(new Envelope(new SendEmailMessage($email, $envelope)))['body'];
