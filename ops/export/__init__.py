"""A student as files that need nothing from this project, and what vouches for them.

write         the export: weights, timm's configuration, ONNX, each checked on real images
programs      torch.export's file and ONNX
construction  how the network is built around its weights
quantize      smaller ONNX files
latency       how long the network takes
photo_script  the script that comes with the files
files         the files' names and digests
model_card    what the student is, and how good
markdown      other people's texts in the card
lineage       what the student was made of, back to the first teacher
signing       who vouches for it
keys          keys to sign with
push          the export as a repository on a model hub
registry      the export in MLflow's model registry
"""
