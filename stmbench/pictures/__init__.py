"""Pictures of what the finished runs measured, as one would put them in a paper. None of them imports torch.

A picture shows only what may be compared: the runs of one recipe on one data set, their numbers taken under
one condition. Each module reads what its pictures need (`read`), draws one (`draw`), and says below it what
it is (`caption`). Every network is shown with all its seeds.
"""
