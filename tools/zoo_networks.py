"""The networks of the zoo: lists of names per package, and how to build each with random weights.

A package is imported when its first network is built; what is not installed is reported as not built.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Tensor | Mapping[str, Tensor]

TORCHVISION = """
    alexnet vgg11_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 squeezenet1_1 googlenet
    inception_v3 mobilenet_v2 mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5 efficientnet_b0
    efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny vit_b_32 swin_t swin_v2_t
    fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large r3d_18 mc3_18 r2plus1d_18 s3d
"""
TIMM = """
    resnet18d resnetv2_50 seresnet18 skresnet18 resnest14d res2net50_26w_4s ghostnet_100 repghostnet_050
    mobilenetv4_conv_small hardcorenas_a lcnet_050 tinynet_e dla34 dpn68 darknet53 cspresnet50 cspdarknet53
    hrnet_w18_small vovnet39a ese_vovnet19b_dw repvgg_a0 mobileone_s0 eca_resnet33ts gcresnext26ts
    bat_resnext26ts lambda_resnet26t halonet26t xception41 selecsls42 rexnet_100 starnet_s1 regnetz_005
    nfnet_l0 convnextv2_atto poolformer_s12 inception_next_tiny edgenext_xx_small
    mobilevit_xxs mobilevitv2_050 efficientformer_l1 efficientvit_b0 fastvit_t8 levit_128s
    deit_tiny_patch16_224 cait_xxs24_224
    xcit_nano_12_p16_224 beit_base_patch16_224 pit_ti_224 coat_tiny visformer_tiny
    tnt_s_legacy_patch16_224 twins_pcpvt_small pvt_v2_b0 mixer_s32_224 resmlp_12_224 gmlp_ti16_224
    focalnet_tiny_srf davit_tiny crossvit_tiny_240 nest_tiny mvitv2_tiny
"""
PYTORCHCV = """
    resnet20_cifar10 preresnet20_cifar10 seresnet20_cifar10 sepreresnet20_cifar10 densenet40_k12_cifar10
    ror3_56_cifar10 rir_cifar10 nin_cifar10 diaresnet20_cifar10 diapreresnet20_cifar10 msdnet22_cifar10
    shakeshakeresnet20_2x16d_cifar10 xdensenet40_2_k24_bc_cifar10 resnext20_16x4d_cifar10
    resdropresnet20_cifar10 fractalnet_cifar10 bam_resnet18 cbam_resnet18 airnet50_1x64d_r2 channelnet
    darknet_tiny dicenet_wd2 espnetv2_wd2 fdmobilenet_wd4 hardnet39ds ibn_resnet50 igcv3_wd4
    menet108_8x1_g3 mixnet_s mobilenet_wd4 octresnet10_ad2 peleenet proxylessnas_cpu resattnet56
    resnesta18 scnet50 shufflenet_g1_wd4 shufflenet_g3_wd4 shufflenetv2_wd2 sparsenet121 spnasnet
    sqnxt23_w1 squeezeresnet_v1_1 vovnet27s condensenet74_c4_g4 bninception sharesnet18
"""
#: Class of the network, class of its configuration, and what makes it small.
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 48, "hidden_dim": 192, "n_layers": 2, "n_heads": 4},
    ),
    "roberta": ("RobertaModel", "RobertaConfig", {}),
    "albert": ("AlbertModel", "AlbertConfig", {"embedding_size": 16}),
    "electra": ("ElectraModel", "ElectraConfig", {"embedding_size": 16}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 48, "n_layer": 2, "n_head": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
    "opt": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 192, "word_embed_proj_dim": 48}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"num_key_value_heads": 2}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {"num_key_value_heads": 2, "head_dim": 12}),
    "phi": ("PhiForCausalLM", "PhiConfig", {}),
    "vit": ("ViTForImageClassification", "ViTConfig", {"image_size": 32, "patch_size": 8}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {"image_size": 32, "patch_size": 8}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {"image_size": 32, "patch_size": 8}),
    "segformer": ("SegformerForImageClassification", "SegformerConfig", {"hidden_sizes": [16, 32, 64, 96]}),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [16, 32, 64, 96]}),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", {"hidden_sizes": [32, 64, 96, 128]}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {}),
}
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "vocab_size": 67,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: Networks of timm that accept no smaller pictures, though they do not say so.
WHOLE_SIZE = (
    *("coat_tiny", "nest_tiny", "focalnet_tiny_srf", "levit_128s", "lambda_resnet26t", "halonet26t"),
    *("bat_resnext26ts", "efficientformer_l1"),
)
PICTURES = ("vit", "deit", "dinov2", "segformer", "convnext", "resnet", "mobilenet_v2")


@dataclass(frozen=True, slots=True)
class Entry:
    """One network of the zoo.

    Attributes:
        family: The package it comes from.
        name: Its name there.
    """

    family: str
    name: str


def entries() -> Iterator[Entry]:
    """Every network of every package, in the order of the table."""
    lists = {"torchvision": TORCHVISION, "timm": TIMM, "pytorchcv": PYTORCHCV}
    for family, names in lists.items():
        for name in names.split():
            yield Entry(family, name)
    for name in TRANSFORMERS:
        yield Entry("transformers", name)
    for seed in range(40):
        yield Entry("random", str(seed))


def build(entry: Entry) -> tuple[nn.Module, Inputs]:
    """A network with random weights and a batch for it, in evaluation mode and double precision.

    Args:
        entry: Which one.

    Returns:
        The network and its inputs.
    """
    torch.manual_seed(0)
    model, inputs = BUILDERS[entry.family](entry.name)
    return model.double().eval(), in_precision(inputs, torch.float64)


def in_precision(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same inputs with floating-point numbers of type ``dtype``."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype)
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
    }


def declare_detection_operators() -> Any:
    """Declares the two operators that torchvision expects of its compiled half, which CPU builds lack.

    Returns:
        The library; the declarations last as long as it does.
    """
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _torchvision(name: str) -> tuple[nn.Module, Inputs]:
    models = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {"weights": None, "num_classes": 10}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}
    if name.startswith("vit"):
        options["image_size"] = 64
    if name.startswith(("fcn", "deeplab", "lraspp")):
        options["weights_backbone"] = None
    model = models.get_model(name, **options)
    if name == "s3d":
        return model, torch.randn(1, 3, 16, 224, 224)
    if name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        return model, torch.randn(2, 3, 16, 64, 64)
    return model, torch.randn(2, 3, 96, 96) if name == "inception_v3" else torch.randn(2, 3, 64, 64)


def _timm(name: str) -> tuple[nn.Module, Inputs]:
    model = importlib.import_module("timm").create_model(name, pretrained=False, num_classes=10)
    size = model.default_cfg["input_size"][-1]
    fixed = model.default_cfg.get("fixed_input_size") or name.endswith(("_224", "_240")) or "vit" in name
    if not fixed and name not in WHOLE_SIZE:
        size = 96
    return model, torch.randn(2, 3, size, size)


def _pytorchcv(name: str) -> tuple[nn.Module, Inputs]:
    provider = importlib.import_module("pytorchcv.model_provider")
    model = provider.get_model(name, pretrained=False)
    return model, torch.randn(2, 3, 32, 32) if "cifar" in name else torch.randn(1, 3, 224, 224)


def _transformers(name: str) -> tuple[nn.Module, Inputs]:
    package = importlib.import_module("transformers")
    class_name, config_name, options = TRANSFORMERS[name]
    plain = name in ("segformer", "convnext", "resnet", "mobilenet_v2")
    config = getattr(package, config_name)(**({} if plain else SMALL) | options)
    config.use_cache = False
    model = getattr(package, class_name)(config)
    if name in PICTURES:
        size = 64 if plain else 32
        return model, {"pixel_values": torch.randn(2, 3, size, size)}
    return model, {"input_ids": torch.randint(3, 60, (2, 11))}


def _random(name: str) -> tuple[nn.Module, Inputs]:
    path = Path(__file__).parents[1] / "tests" / "graph" / "random_networks.py"
    spec = importlib.util.spec_from_file_location("random_networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: tuple[nn.Module, Inputs] = module.network(int(name))
    return network


BUILDERS = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pytorchcv": _pytorchcv,
    "transformers": _transformers,
    "random": _random,
}
