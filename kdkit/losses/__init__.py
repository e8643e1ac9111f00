"""The loss zoo: one paper per file, each a pure function of tensors and a thin module with its options.

Importing this package loads torch and nothing else. Files without an underscore are what you can pick from.
"""

from kdkit.losses._base import DistillationLoss, FeatureLoss, FeaturesLoss, LabelledLogitLoss, LogitLoss, Probe
from kdkit.losses._fused_linear import FusedParts, fused_linear_divergence
from kdkit.losses._fused_sparse import fused_sampled_divergence, fused_topk_divergence
from kdkit.losses._topk import TeacherSamples, sample_teacher, sampled_divergence, topk_divergence
from kdkit.losses.ab import ABLoss, ab_loss
from kdkit.losses.ab_divergence import ABDivergenceLoss, ab_divergence_loss
from kdkit.losses.adaptive_kl import AdaptiveKLLoss, adaptive_kl_loss
from kdkit.losses.alpha_divergence import AlphaDivergenceLoss, alpha_divergence_loss
from kdkit.losses.at import ATLoss, at_loss
from kdkit.losses.attention_kl import AttentionKLLoss, attention_kl_loss
from kdkit.losses.bce_kd import BCEKDLoss, bce_kd_loss
from kdkit.losses.bdkd import BDKDLoss, bdkd_loss
from kdkit.losses.cat_kd import CATKDLoss, cat_kd_loss
from kdkit.losses.cauchy_schwarz import CauchySchwarzLoss, cauchy_schwarz_loss
from kdkit.losses.cc import CCLoss, cc_loss
from kdkit.losses.cc_released import CCReleasedLoss, cc_released_loss
from kdkit.losses.ce import CELoss, ce_loss
from kdkit.losses.chi_square import ChiSquareLoss, chi_square_loss
from kdkit.losses.cka import CKALoss, cka_loss
from kdkit.losses.class_transport import ClassTransportLoss, class_transport_loss
from kdkit.losses.contrastive import ContrastiveLoss, contrastive_loss
from kdkit.losses.cosine_features import CosineFeaturesLoss, cosine_features_loss
from kdkit.losses.cosine_logits import CosineLogitsLoss, cosine_logits_loss
from kdkit.losses.crd import CRDLoss, crd_loss
from kdkit.losses.ctkd import CTKDLoss, ctkd_loss
from kdkit.losses.darkrank import DarkRankLoss, darkrank_loss
from kdkit.losses.dist import DISTLoss, dist_loss
from kdkit.losses.dkd import DKDLoss, dkd_loss
from kdkit.losses.dml import DMLLoss, dml_loss
from kdkit.losses.dskd import DSKDLoss, dskd_loss
from kdkit.losses.energy_distance import EnergyDistanceLoss, energy_distance_loss
from kdkit.losses.f_divergence import FDivergenceLoss, f_divergence_loss
from kdkit.losses.fitnets import FitNetsLoss, fitnets_loss
from kdkit.losses.fsp import FSPLoss, fsp_loss
from kdkit.losses.ft import FTLoss, ft_loss
from kdkit.losses.gold import GOLDLoss, gold_loss
from kdkit.losses.gram import GramLoss, gram_loss
from kdkit.losses.hellinger import HellingerLoss, hellinger_loss
from kdkit.losses.hidden_cosine import HiddenCosineLoss, hidden_cosine_loss
from kdkit.losses.hidden_mse import HiddenMSELoss, hidden_mse_loss
from kdkit.losses.ickd import ICKDLoss, ickd_loss
from kdkit.losses.jeffreys import JeffreysLoss, jeffreys_loss
from kdkit.losses.js import JSLoss, js_loss
from kdkit.losses.kd import KDLoss, kd_loss
from kdkit.losses.kdsvd import KDSVDLoss, kdsvd_loss
from kdkit.losses.kl import KLLoss, kl_loss
from kdkit.losses.list_mle import ListMLELoss, list_mle_loss
from kdkit.losses.logit_mse import LogitMSELoss, logit_mse_loss
from kdkit.losses.logit_standardization import LogitStandardizationLoss, logit_standardization_loss, standardize_logits
from kdkit.losses.mdcs import MDCSLoss, mdcs_loss
from kdkit.losses.mft import MFTLoss, mft_loss
from kdkit.losses.mgd import MGDLoss, mgd_loss
from kdkit.losses.minilm import MiniLMLoss, minilm_loss
from kdkit.losses.mlkd import MLKDLoss, mlkd_loss
from kdkit.losses.mmd import MMDLoss, mmd_loss
from kdkit.losses.multilevel_ot import MultiLevelOTLoss, multilevel_ot_loss
from kdkit.losses.nd import NDLoss, nd_loss
from kdkit.losses.nkd import NKDLoss, nkd_loss
from kdkit.losses.nst import NSTLoss, nst_loss
from kdkit.losses.ofa import OFALoss, ofa_loss
from kdkit.losses.ofa_exits import OFAExitsLoss, ofa_exits_loss
from kdkit.losses.ofd import OFDLoss, ofd_loss
from kdkit.losses.pairwise_hinge import PairwiseHingeLoss, pairwise_hinge_loss
from kdkit.losses.pairwise_logistic import PairwiseLogisticLoss, pairwise_logistic_loss
from kdkit.losses.pkt import PKTLoss, pkt_loss
from kdkit.losses.renyi import RenyiLoss, renyi_loss
from kdkit.losses.reverse_kl import ReverseKLLoss, reverse_kl_loss
from kdkit.losses.reviewkd import ReviewKDLoss, reviewkd_loss
from kdkit.losses.rkd import RKDLoss, rkd_loss
from kdkit.losses.rld import RLDLoss, rld_loss
from kdkit.losses.saf import SAFLoss, saf_loss
from kdkit.losses.semckd import SemCKDLoss, semckd_loss
from kdkit.losses.simkd import SimKDLoss, simkd_loss
from kdkit.losses.sinkd import SinKDReleasedLoss, sinkd_released_loss
from kdkit.losses.sinkhorn import SinkhornLoss, sinkhorn_loss
from kdkit.losses.sinkhorn_divergence import SinkhornDivergenceLoss, sinkhorn_divergence_loss
from kdkit.losses.skew_kl import SkewKLLoss, skew_kl_loss
from kdkit.losses.skew_reverse_kl import SkewReverseKLLoss, skew_reverse_kl_loss
from kdkit.losses.sp import SPLoss, sp_loss
from kdkit.losses.srd import SRDLoss, srd_loss
from kdkit.losses.srrl import SRRLLoss, srrl_loss
from kdkit.losses.symmetric_kl import SymmetricKLLoss, symmetric_kl_loss
from kdkit.losses.tfkd import TfKDLoss, tfkd_loss
from kdkit.losses.topk import TopKLoss, topk_loss
from kdkit.losses.total_variation import TotalVariationLoss, total_variation_loss
from kdkit.losses.ttm import TTMLoss, ttm_loss
from kdkit.losses.uld import ULDLoss, uld_loss
from kdkit.losses.uskd import USKDLoss, uskd_loss
from kdkit.losses.vid import VIDLoss, vid_loss
from kdkit.losses.vitkd import ViTKDLoss, vitkd_loss
from kdkit.losses.wasserstein_1d import Wasserstein1DLoss, wasserstein_1d_loss
from kdkit.losses.wsld import WSLDLoss, wsld_loss

__all__ = [
    "ABDivergenceLoss",
    "ABLoss",
    "ATLoss",
    "AdaptiveKLLoss",
    "AlphaDivergenceLoss",
    "AttentionKLLoss",
    "BCEKDLoss",
    "BDKDLoss",
    "CATKDLoss",
    "CCLoss",
    "CCReleasedLoss",
    "CELoss",
    "CKALoss",
    "CRDLoss",
    "CTKDLoss",
    "CauchySchwarzLoss",
    "ChiSquareLoss",
    "ClassTransportLoss",
    "ContrastiveLoss",
    "CosineFeaturesLoss",
    "CosineLogitsLoss",
    "DISTLoss",
    "DKDLoss",
    "DMLLoss",
    "DSKDLoss",
    "DarkRankLoss",
    "DistillationLoss",
    "EnergyDistanceLoss",
    "FDivergenceLoss",
    "FSPLoss",
    "FTLoss",
    "FeatureLoss",
    "FeaturesLoss",
    "FitNetsLoss",
    "FusedParts",
    "GOLDLoss",
    "GramLoss",
    "HellingerLoss",
    "HiddenCosineLoss",
    "HiddenMSELoss",
    "ICKDLoss",
    "JSLoss",
    "JeffreysLoss",
    "KDLoss",
    "KDSVDLoss",
    "KLLoss",
    "LabelledLogitLoss",
    "ListMLELoss",
    "LogitLoss",
    "LogitMSELoss",
    "LogitStandardizationLoss",
    "MDCSLoss",
    "MFTLoss",
    "MGDLoss",
    "MLKDLoss",
    "MMDLoss",
    "MiniLMLoss",
    "MultiLevelOTLoss",
    "NDLoss",
    "NKDLoss",
    "NSTLoss",
    "OFAExitsLoss",
    "OFALoss",
    "OFDLoss",
    "PKTLoss",
    "PairwiseHingeLoss",
    "PairwiseLogisticLoss",
    "Probe",
    "RKDLoss",
    "RLDLoss",
    "RenyiLoss",
    "ReverseKLLoss",
    "ReviewKDLoss",
    "SAFLoss",
    "SPLoss",
    "SRDLoss",
    "SRRLLoss",
    "SemCKDLoss",
    "SimKDLoss",
    "SinKDReleasedLoss",
    "SinkhornDivergenceLoss",
    "SinkhornLoss",
    "SkewKLLoss",
    "SkewReverseKLLoss",
    "SymmetricKLLoss",
    "TTMLoss",
    "TeacherSamples",
    "TfKDLoss",
    "TopKLoss",
    "TotalVariationLoss",
    "ULDLoss",
    "USKDLoss",
    "VIDLoss",
    "ViTKDLoss",
    "WSLDLoss",
    "Wasserstein1DLoss",
    "ab_divergence_loss",
    "ab_loss",
    "adaptive_kl_loss",
    "alpha_divergence_loss",
    "at_loss",
    "attention_kl_loss",
    "bce_kd_loss",
    "bdkd_loss",
    "cat_kd_loss",
    "cauchy_schwarz_loss",
    "cc_loss",
    "cc_released_loss",
    "ce_loss",
    "chi_square_loss",
    "cka_loss",
    "class_transport_loss",
    "contrastive_loss",
    "cosine_features_loss",
    "cosine_logits_loss",
    "crd_loss",
    "ctkd_loss",
    "darkrank_loss",
    "dist_loss",
    "dkd_loss",
    "dml_loss",
    "dskd_loss",
    "energy_distance_loss",
    "f_divergence_loss",
    "fitnets_loss",
    "fsp_loss",
    "ft_loss",
    "fused_linear_divergence",
    "fused_sampled_divergence",
    "fused_topk_divergence",
    "gold_loss",
    "gram_loss",
    "hellinger_loss",
    "hidden_cosine_loss",
    "hidden_mse_loss",
    "ickd_loss",
    "jeffreys_loss",
    "js_loss",
    "kd_loss",
    "kdsvd_loss",
    "kl_loss",
    "list_mle_loss",
    "logit_mse_loss",
    "logit_standardization_loss",
    "mdcs_loss",
    "mft_loss",
    "mgd_loss",
    "minilm_loss",
    "mlkd_loss",
    "mmd_loss",
    "multilevel_ot_loss",
    "nd_loss",
    "nkd_loss",
    "nst_loss",
    "ofa_exits_loss",
    "ofa_loss",
    "ofd_loss",
    "pairwise_hinge_loss",
    "pairwise_logistic_loss",
    "pkt_loss",
    "renyi_loss",
    "reverse_kl_loss",
    "reviewkd_loss",
    "rkd_loss",
    "rld_loss",
    "saf_loss",
    "sample_teacher",
    "sampled_divergence",
    "semckd_loss",
    "simkd_loss",
    "sinkd_released_loss",
    "sinkhorn_divergence_loss",
    "sinkhorn_loss",
    "skew_kl_loss",
    "skew_reverse_kl_loss",
    "sp_loss",
    "srd_loss",
    "srrl_loss",
    "standardize_logits",
    "symmetric_kl_loss",
    "tfkd_loss",
    "topk_divergence",
    "topk_loss",
    "total_variation_loss",
    "ttm_loss",
    "uld_loss",
    "uskd_loss",
    "vid_loss",
    "vitkd_loss",
    "wasserstein_1d_loss",
    "wsld_loss",
]
