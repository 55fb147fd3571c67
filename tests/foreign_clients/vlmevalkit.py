"""VLMEvalKit's `run.py` with one more dataset: the video clips of the working directory and clips.tsv."""

import os

import vlmeval.dataset
from vlmeval.dataset.video_base import VideoBaseDataset


class ReelClips(VideoBaseDataset):
    TYPE = "Video-VQA"

    def __init__(self, dataset="ReelClips", nframe=0, fps=-1):
        super().__init__(dataset=dataset, nframe=nframe, fps=fps)

    @classmethod
    def supported_datasets(cls):
        return ["ReelClips"]

    def prepare_dataset(self, dataset):
        folder = os.getcwd()
        return {"root": folder, "data_file": os.path.join(folder, "clips.tsv")}

    def build_prompt(self, row, video_llm):
        if isinstance(row, int):
            row = self.data.iloc[row]
        if video_llm:
            # The number of frames is part of the message, as in the kit's Video-MME-v2.
            path = os.path.join(self.data_root, row["video"] + ".mp4")
            media = [{"type": "video", "value": path, "nframes": self.nframe}]
        else:
            media = [{"type": "image", "value": path} for path in self.save_video_frames(row["video"])]
        return media + [{"type": "text", "value": row["question"]}]

    @classmethod
    def evaluate(cls, eval_file, **judge_kwargs):
        return {}


# The configuration file of a run names a class of this module.
vlmeval.dataset.ReelClips = ReelClips

if __name__ == "__main__":
    from vlmeval.run import main

    main()
