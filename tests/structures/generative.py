"""Generative models: their losses, several optimizers, noise."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.structures.registry import (
    BATCH,
    CLASSES,
    IMAGES,
    NOISE,
    ROWS,
    batches,
    dense,
    structure,
)
from tests.structures.trial import Trial

IMAGES_AND_NOISE = (IMAGES, NOISE)


class Autoencoder(keras.Model):
    """Variational; has no call. With ``noise`` in the data, two runs can be compared."""

    def __init__(self, note: Any = None) -> None:
        super().__init__()
        self.encoder, self.decoder = dense(6, 8), dense(6, 5, inputs=4)
        self.seeds = keras.random.SeedGenerator(1337)
        self.note = note
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.reconstruction_loss_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_loss_tracker = keras.metrics.Mean(name="kl_loss")

    @property
    def metrics(self) -> Any:
        return [
            self.total_loss_tracker,
            self.reconstruction_loss_tracker,
            self.kl_loss_tracker,
        ]

    def train_step(self, data: Any) -> Any:
        noise = None
        if isinstance(data, tuple):
            data, noise = data
        with tf.GradientTape() as tape:
            mean, log_variance = ops.split(self.encoder(data), 2, axis=1)
            if noise is None:
                noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
                self.note(noise)
            reconstruction = self.decoder(mean + ops.exp(0.5 * log_variance) * noise)
            reconstruction_loss = ops.mean(ops.sum(ops.square(data - reconstruction), axis=1))
            kl_loss = -0.5 * (1 + log_variance - ops.square(mean) - ops.exp(log_variance))
            kl_loss = ops.mean(ops.sum(kl_loss, axis=1))
            total_loss = reconstruction_loss + kl_loss
        gradients = tape.gradient(total_loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total_loss_tracker.update_state(total_loss)
        self.reconstruction_loss_tracker.update_state(reconstruction_loss)
        self.kl_loss_tracker.update_state(kl_loss)
        return {
            "loss": self.total_loss_tracker.result(),
            "reconstruction_loss": self.reconstruction_loss_tracker.result(),
            "kl_loss": self.kl_loss_tracker.result(),
        }


@structure("keras.io/examples/generative/vae", "train_step without call; total_loss logged as loss")
def variational_autoencoder(trial: Trial) -> None:
    with trial.scope():
        model = Autoencoder()
        model.compile(optimizer=keras.optimizers.Adam(0.01))
    trial.fit(model, batches(ROWS, NOISE), epochs=2)


@structure(
    "keras.io/examples/generative/vae", "fit(x) alone; a SeedGenerator's noise", is_random=True
)
def variational_autoencoder_with_noise(trial: Trial) -> None:
    with trial.scope():
        model = Autoencoder(trial.note_draw)
        model.compile(optimizer=keras.optimizers.Adam(0.02))
    trial.fit(model, ROWS + 2, epochs=8, batch_size=BATCH)


def discriminator(channels: int = 2) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            layers.Conv2D(3, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def generator(inputs: int = 4) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(4 * 4 * 2),
            layers.Reshape((4, 4, 2)),
            layers.Conv2DTranspose(2, 3, strides=2, padding="same", activation="sigmoid"),
        ]
    )


class Adversaries(keras.Model):
    """Two networks, two optimizers as attributes."""

    def __init__(self, note: Any = None) -> None:
        super().__init__()
        self.discriminator, self.generator = discriminator(), generator()
        self.note = note

    def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn
        self.d_loss_metric = keras.metrics.Mean(name="d_loss")
        self.g_loss_metric = keras.metrics.Mean(name="g_loss")

    @property
    def metrics(self) -> Any:
        return [self.d_loss_metric, self.g_loss_metric]

    def train_step(self, real: Any) -> Any:
        if isinstance(real, tuple):
            real, noise = real
        else:
            noise = tf.random.normal((tf.shape(real)[0], 4), dtype=real.dtype)
            self.note(noise)
        count = ops.shape(real)[0]
        both = ops.concatenate([self.generator(noise), real], axis=0)
        labels = ops.concatenate([ops.ones((count, 1)), ops.zeros((count, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(ops.zeros((count, 1)), predictions)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        self.d_loss_metric.update_state(d_loss)
        self.g_loss_metric.update_state(g_loss)
        return {"d_loss": self.d_loss_metric.result(), "g_loss": self.g_loss_metric.result()}


def fit_adversaries(trial: Trial, data: Any, note: Any = None, epochs: int = 2) -> None:
    with trial.scope():
        model = Adversaries(note)
        model.compile(
            d_optimizer=keras.optimizers.Adam(learning_rate=0.01),
            g_optimizer=keras.optimizers.Adam(learning_rate=0.01),
            loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
        )
    trial.fit(model, data, epochs=epochs)


@structure(
    "keras.io/examples/generative/dcgan_overriding_train_step",
    "two optimizers that are attributes and not built, batches of twice the size",
)
def dcgan(trial: Trial) -> None:
    fit_adversaries(trial, batches(*IMAGES_AND_NOISE))


@structure(
    "keras.io/examples/generative/dcgan_overriding_train_step", "tf.random noise", is_random=True
)
def dcgan_with_noise(trial: Trial) -> None:
    fit_adversaries(trial, batches(IMAGES), trial.note_draw, epochs=3)


@structure("keras.io/examples/generative/wgan_gp", "nested tapes, three updates of one per other's")
def wgan_gp(trial: Trial) -> None:
    class Wasserstein(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.discriminator, self.generator = discriminator(), generator()

        def compile(self, d_optimizer: Any, g_optimizer: Any) -> None:
            super().compile()
            self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

        def penalty(self, real: Any, fake: Any) -> Any:
            between = real + 0.3 * (fake - real)
            with tf.GradientTape() as tape:
                tape.watch(between)
                scores = self.discriminator(between, training=True)
            gradients = tape.gradient(scores, [between])[0]
            norm = tf.sqrt(tf.reduce_sum(tf.square(gradients), axis=[1, 2, 3]))
            return tf.reduce_mean((norm - 1.0) ** 2)

        def train_step(self, data: Any) -> Any:
            real, noise = data
            for i in range(3):
                with tf.GradientTape() as tape:
                    fake = self.generator(noise * (1 + i), training=True)
                    scores = self.discriminator(real, training=True)
                    loss = tf.reduce_mean(self.discriminator(fake, training=True))
                    d_loss = loss - tf.reduce_mean(scores) + 10 * self.penalty(real, fake)
                weights = self.discriminator.trainable_variables
                self.d_optimizer.apply_gradients(
                    zip(tape.gradient(d_loss, weights), weights, strict=True)
                )
            with tf.GradientTape() as tape:
                fake = self.generator(noise, training=True)
                g_loss = -tf.reduce_mean(self.discriminator(fake, training=True))
            weights = self.generator.trainable_variables
            self.g_optimizer.apply_gradients(
                zip(tape.gradient(g_loss, weights), weights, strict=True)
            )
            return {"d_loss": d_loss, "g_loss": g_loss}

    with trial.scope():
        model = Wasserstein()
        options = {"learning_rate": 0.002, "beta_1": 0.5, "beta_2": 0.9}
        model.compile(keras.optimizers.Adam(**options), keras.optimizers.Adam(**options))
    trial.fit(model, batches(*IMAGES_AND_NOISE), epochs=2)


@structure("keras.io/examples/generative/conditional_gan", "labels joined to images and to noise")
def conditional_gan(trial: Trial) -> None:
    class Conditional(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.discriminator, self.generator = discriminator(5), generator(7)
            self.gen_loss_tracker = keras.metrics.Mean(name="generator_loss")
            self.disc_loss_tracker = keras.metrics.Mean(name="discriminator_loss")

        @property
        def metrics(self) -> Any:
            return [self.gen_loss_tracker, self.disc_loss_tracker]

        def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any) -> None:
            super().compile()
            self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

        def train_step(self, data: Any) -> Any:
            (real, noise), labels = data
            one_hot = ops.one_hot(labels, 3, dtype=real.dtype)
            planes = ops.repeat(ops.repeat(one_hot[:, None, None], 8, axis=1), 8, axis=2)
            inputs = ops.concatenate([noise, one_hot], axis=1)
            count = ops.shape(real)[0]
            fake = ops.concatenate([self.generator(inputs), planes], -1)
            both = ops.concatenate([fake, ops.concatenate([real, planes], -1)], axis=0)
            truth = ops.concatenate([ops.ones((count, 1)), ops.zeros((count, 1))], axis=0)
            with tf.GradientTape() as tape:
                d_loss = self.loss_fn(truth, self.discriminator(both))
            weights = self.discriminator.trainable_weights
            self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
            with tf.GradientTape() as tape:
                fake = ops.concatenate([self.generator(inputs), planes], -1)
                g_loss = self.loss_fn(ops.zeros((count, 1)), self.discriminator(fake))
            weights = self.generator.trainable_weights
            self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
            self.gen_loss_tracker.update_state(g_loss)
            self.disc_loss_tracker.update_state(d_loss)
            return {
                "g_loss": self.gen_loss_tracker.result(),
                "d_loss": self.disc_loss_tracker.result(),
            }

    with trial.scope():
        model = Conditional()
        model.compile(
            keras.optimizers.Adam(0.003),
            keras.optimizers.Adam(0.003),
            keras.losses.BinaryCrossentropy(from_logits=True),
        )
    trial.fit(model, batches(IMAGES_AND_NOISE, CLASSES), epochs=2)


def translator() -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(2, 3, padding="same")])


@structure(
    "tensorflow.org/tutorials/generative/pix2pix", "a loss object of Keras plus a mean of one's own"
)
def pix2pix(trial: Trial) -> None:
    class Translation(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.discriminator, self.generator = discriminator(4), translator()
            self.loss_object = keras.losses.BinaryCrossentropy(from_logits=True)

        def train_step(self, data: Any) -> Any:
            image, target = data
            with tf.GradientTape() as gen_tape, tf.GradientTape() as disc_tape:
                made = self.generator(image, training=True)
                on_real = self.discriminator(tf.concat([image, target], -1), training=True)
                on_made = self.discriminator(tf.concat([image, made], -1), training=True)
                gan_loss = self.loss_object(tf.ones_like(on_made), on_made)
                l1_loss = tf.reduce_mean(tf.abs(target - made))
                gen_loss = gan_loss + 10 * l1_loss
                disc_loss = self.loss_object(tf.ones_like(on_real), on_real)
                disc_loss += self.loss_object(tf.zeros_like(on_made), on_made)
            for tape, loss, net, optimizer in (
                (gen_tape, gen_loss, self.generator, self.optimizer),
                (disc_tape, disc_loss, self.discriminator, self.other_optimizer),
            ):
                weights = net.trainable_variables
                optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return {"gen_loss": gen_loss, "l1_loss": l1_loss, "disc_loss": disc_loss}

    with trial.scope():
        model = Translation()
        model.compile(optimizer=keras.optimizers.Adam(2e-3, beta_1=0.5))
        model.other_optimizer = keras.optimizers.Adam(2e-3, beta_1=0.5)
    trial.fit(model, batches(IMAGES, 1 - IMAGES), epochs=2)


def cycle_gan(trial: Trial, hold: Any) -> None:
    mse, mae = keras.losses.MeanSquaredError(), keras.losses.MeanAbsoluteError()

    class Cycle(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.gen_g, self.gen_f = translator(), translator()
            self.disc_x, self.disc_y = discriminator(), discriminator()

        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape(persistent=True) as tape:
                fake_y, fake_x = self.gen_g(x, training=True), self.gen_f(y, training=True)
                again_x, again_y = self.gen_f(fake_y), self.gen_g(fake_x)
                on_x, on_fake_x = self.disc_x(x), self.disc_x(fake_x)
                on_y, on_fake_y = self.disc_y(y), self.disc_y(fake_y)
                cycle = (mae(x, again_x) + mae(y, again_y)) * 10
                losses = {
                    "g": mse(tf.ones_like(on_fake_y), on_fake_y)
                    + cycle
                    + 5 * mae(y, self.gen_g(y)),
                    "f": mse(tf.ones_like(on_fake_x), on_fake_x)
                    + cycle
                    + 5 * mae(x, self.gen_f(x)),
                    "x": 0.5 * (mse(on_x * 0 + 1, on_x) + mse(on_fake_x * 0, on_fake_x)),
                    "y": 0.5 * (mse(on_y * 0 + 1, on_y) + mse(on_fake_y * 0, on_fake_y)),
                }
            nets = {"g": self.gen_g, "f": self.gen_f, "x": self.disc_x, "y": self.disc_y}
            optimizers = self.optimizers
            if not isinstance(optimizers, dict):
                optimizers = dict(zip(nets, optimizers, strict=True))
            for name, net in nets.items():
                weights = net.trainable_variables
                optimizers[name].apply(tape.gradient(losses[name], weights), weights)
            return {f"{name}_loss": loss for name, loss in losses.items()}

    with trial.scope():
        model = Cycle()
        model.compile()
        model.optimizers = hold({name: keras.optimizers.Adam(2e-3) for name in "gfxy"})
    trial.fit(model, batches(IMAGES, 1 - IMAGES), epochs=1)


@structure("keras.io/examples/generative/cyclegan", "four optimizers in a dict, a persistent tape")
def cycle_gan_with_a_dict(trial: Trial) -> None:
    cycle_gan(trial, dict)


@structure("tensorflow.org/tutorials/generative/cyclegan", "four optimizers in a list")
def cycle_gan_with_a_list(trial: Trial) -> None:
    cycle_gan(trial, lambda held: list(held.values()))


@structure(
    "keras.io/examples/generative/ddim",
    "self.loss of compile(loss=…), a Normalization, an averaged network that is assigned by hand",
)
def diffusion(trial: Trial) -> None:
    class Diffusion(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.normalizer = layers.Normalization()
            self.network = keras.Sequential(
                [keras.Input((6,)), layers.Dense(6, "swish"), layers.Dense(5)]
            )
            self.ema_network = keras.models.clone_model(self.network)

        def compile(self, **options: Any) -> None:
            super().compile(**options)
            self.noise_loss_tracker = keras.metrics.Mean(name="n_loss")
            self.image_loss_tracker = keras.metrics.Mean(name="i_loss")

        @property
        def metrics(self) -> Any:
            return [self.noise_loss_tracker, self.image_loss_tracker]

        def denoise(self, rows: Any, noise: Any, times: Any, training: bool) -> Any:
            network = self.network if training else self.ema_network
            signal, rate = ops.cos(times), ops.sin(times)
            noisy = signal * rows + rate * noise
            predicted = network(ops.concatenate([noisy, rate**2], axis=-1), training=training)
            return predicted, (noisy - rate * predicted) / signal

        def train_step(self, data: Any) -> Any:
            rows, noise, times = data
            rows = self.normalizer(rows, training=True)
            with tf.GradientTape() as tape:
                predicted, cleaned = self.denoise(rows, noise, times, training=True)
                noise_loss = self.loss(noise, predicted)
                image_loss = self.loss(rows, cleaned)
            weights = self.network.trainable_weights
            gradients = tape.gradient(noise_loss, weights)
            self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
            self.noise_loss_tracker.update_state(noise_loss)
            self.image_loss_tracker.update_state(image_loss)
            for weight, ema in zip(self.network.weights, self.ema_network.weights, strict=True):
                ema.assign(0.9 * ema + 0.1 * weight)
            return {metric.name: metric.result() for metric in self.metrics}

        def test_step(self, data: Any) -> Any:
            rows, noise, times = data
            rows = self.normalizer(rows, training=False)
            predicted, _ = self.denoise(rows, noise, times, training=False)
            self.noise_loss_tracker.update_state(self.loss(noise, predicted))
            return {metric.name: metric.result() for metric in self.metrics}

    with trial.scope():
        model = Diffusion()
        model.normalizer.adapt(ROWS)
        model.compile(
            optimizer=keras.optimizers.AdamW(learning_rate=1e-2, weight_decay=1e-4),
            loss=keras.losses.mean_absolute_error,
        )
    data = batches(ROWS, ROWS[::-1].copy(), abs(NOISE[:, :1]) % 1)
    trial.fit(model, data, epochs=2, validation_data=data)


class Quantizer(layers.Layer):
    """The nearest vectors of a codebook, which is trained or averaged."""

    def __init__(self, is_averaged: bool) -> None:
        super().__init__()
        self.is_averaged = is_averaged

    def build(self, shape: Any) -> None:
        options = {"initializer": "random_uniform", "trainable": not self.is_averaged}
        self.codes = self.add_weight(shape=(shape[-1], 4), name="codes", **options)
        if self.is_averaged:
            options = {"initializer": "ones", "trainable": False}
            self.counts = self.add_weight(shape=(4,), name="counts", **options)
            self.sums = self.add_weight(shape=(shape[-1], 4), name="sums", **options)

    def call(self, x: Any, training: bool = False) -> Any:
        far = ops.sum(x**2, axis=1, keepdims=True) - 2 * ops.matmul(x, self.codes)
        nearest = ops.argmin(far + ops.sum(self.codes**2, axis=0), axis=1)
        chosen = ops.one_hot(nearest, 4, dtype=x.dtype)
        quantized = ops.matmul(chosen, ops.transpose(self.codes))
        self.add_loss(0.25 * ops.mean((ops.stop_gradient(quantized) - x) ** 2))
        if not self.is_averaged:
            self.add_loss(ops.mean((quantized - ops.stop_gradient(x)) ** 2))
        elif training:
            self.counts.assign(0.9 * self.counts + 0.1 * ops.sum(chosen, axis=0))
            self.sums.assign(0.9 * self.sums + 0.1 * ops.matmul(ops.transpose(x), chosen))
            self.codes.assign(self.sums / (self.counts + 1e-5))
        return x + ops.stop_gradient(quantized - x)


def fit_quantized(trial: Trial, is_averaged: bool) -> None:
    class Trainer(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            middle = [dense(6, 3), Quantizer(is_averaged), dense(6, 5, inputs=3)]
            self.vqvae = keras.Sequential([keras.Input((5,)), *middle])
            self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
            self.vq_loss_tracker = keras.metrics.Mean(name="vq_loss")

        @property
        def metrics(self) -> Any:
            return [self.total_loss_tracker, self.vq_loss_tracker]

        def train_step(self, x: Any) -> Any:
            with tf.GradientTape() as tape:
                error = ops.mean((x - self.vqvae(x, training=True)) ** 2) / 0.7
                total_loss = error + sum(self.vqvae.losses)
            weights = self.vqvae.trainable_variables
            self.optimizer.apply(tape.gradient(total_loss, weights), weights)
            self.total_loss_tracker.update_state(total_loss)
            self.vq_loss_tracker.update_state(sum(self.vqvae.losses))
            return {"loss": self.total_loss_tracker.result(), "vq": self.vq_loss_tracker.result()}

    with trial.scope():
        model = Trainer()
        model.compile(optimizer=keras.optimizers.Adam(0.01))
    trial.fit(model, ROWS, epochs=2, batch_size=BATCH)


@structure("keras.io/examples/generative/vq_vae", "a trained codebook; sum(model.losses) by hand")
def vq_vae(trial: Trial) -> None:
    fit_quantized(trial, is_averaged=False)


@structure("arxiv.org/abs/1711.00937 (VQ-VAE)", "a codebook averaged from sums over the batch")
def vq_vae_averaged(trial: Trial) -> None:
    fit_quantized(trial, is_averaged=True)


@structure("keras.io/examples/generative/real_nvp", "a log-likelihood; test_step; no compiled loss")
def normalizing_flow(trial: Trial) -> None:
    class Flow(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.couplings = [dense(6, 10) for _ in range(2)]
            self.loss_tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self) -> Any:
            return [self.loss_tracker]

        def call(self, x: Any) -> Any:
            total = 0.0
            for i, coupling in enumerate(self.couplings):
                mask = ops.cast(ops.arange(5) % 2 == i, x.dtype)
                shift, scale = ops.split(coupling(x * mask), 2, axis=1)
                scale = ops.tanh(scale) * (1 - mask)
                x = x * ops.exp(scale) + shift * (1 - mask)
                total += ops.sum(scale, axis=1)
            return x, total

        def log_loss(self, x: Any) -> Any:
            z, log_determinant = self(x)
            return -ops.mean(-0.5 * ops.sum(z**2, axis=1) + log_determinant)

        def train_step(self, data: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.log_loss(data)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            self.loss_tracker.update_state(loss)
            return {"loss": self.loss_tracker.result()}

        def test_step(self, data: Any) -> Any:
            self.loss_tracker.update_state(self.log_loss(data))
            return {"loss": self.loss_tracker.result()}

    with trial.scope():
        model = Flow()
        model.compile(optimizer=keras.optimizers.Adam(learning_rate=0.01))
    trial.fit(model, ROWS, batch_size=BATCH, epochs=2, validation_data=(ROWS,))
