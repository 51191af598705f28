//! DMA remapping for iovirt: implementations of the translation contract.
